#!/usr/bin/env bash
# Measures this project's mining proxy, the reference implementation's translator and two floors side by side, and
# prints a Markdown table. Builds what it needs. Everything that was measured goes to compare.json (--json FILE).
# Usage: benches/compare.sh [--quick] [other options of `load compare`]
set -euo pipefail
cd "$(dirname "$0")/.."

cargo build --release --package checkweigh --package load >&2
case " $* " in
  *" --without-translator "*) ;;
  *) scripts/reference-peers.sh translator_sv2 >&2 ;;
esac

# Every miner is an open file, on both sides.
ulimit -n "$(ulimit -Hn)"
exec "${CARGO_TARGET_DIR:-target}/release/load" compare "$@"
