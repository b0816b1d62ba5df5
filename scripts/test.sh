#!/usr/bin/env bash
# Runs every test: unit, golden vectors, simulation, real Bitcoin Core, the reference implementation, fuzzing.
# Does its own set-up. The first run builds a Bitcoin node and the reference implementation's programs into a cache
# folder outside the checkout (CHECKWEIGH_CACHE, or ~/.cache/checkweigh); later runs use them again.
# FUZZ_SECONDS sets how long each fuzz target runs (60).
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/debian-packages.sh gcc g++ capnproto libcapnp-dev
BITCOIN_NODE=$(scripts/bitcoin-node.sh)
export BITCOIN_NODE
CHECKWEIGH_REFERENCE_PEERS=$(scripts/reference-peers.sh translator_sv2 jd_client_sv2 pool_sv2)
export CHECKWEIGH_REFERENCE_PEERS

# A thousand miners in one process have two thousand sockets.
ulimit -n "$(ulimit -Hn)"

# Bitcoin Core's interprocess interface is a feature of its own, because it needs `capnp` to build.
with_ipc=(--package checkweigh --features ipc --lib --test ipc --test config
  --test declaration_server --test farm_and_pool --test whole_stack)

log=$(mktemp)
trap 'rm -f "$log"' EXIT
if cargo nextest --version >/dev/null 2>&1; then
  cargo nextest run --workspace --profile ci 2>&1 | tee "$log"
  cargo nextest run "${with_ipc[@]}" --profile ci -E 'binary(ipc) | test(ipc)' 2>&1 | tee -a "$log"
else
  cargo test --workspace
  cargo test "${with_ipc[@]}" ipc
  cargo test --package checkweigh --features ipc --test ipc
fi
scripts/fuzz.sh "${FUZZ_SECONDS:-60}"

# Last, so that nobody misses it: what passed at the second try only.
flaky=$(sed 's/\x1b\[[0-9;]*m//g' "$log" | sed -n '/^ *Summary \[/,$ s/^ *\(FLAKY .*\)/\1/p')
if [ -n "$flaky" ]; then
  printf '\nPASSED ONLY WHEN TRIED AGAIN, which hides a race or a test that is too hasty. Look at each:\n%s\n' "$flaky" >&2
fi
