#!/usr/bin/env bash
# Runs every fuzz target for SECONDS (60 when not given); fails when one of them finds a crash.
#
#   scripts/fuzz.sh [SECONDS] [TARGET...]
#   scripts/fuzz.sh --replay TARGET FILE    runs one input again
#
# Works on the stable toolchain: the coverage that libFuzzer needs comes from flags of the code generator, which is what
# `cargo fuzz --sanitizer none` passes too. Builds and corpora are kept in a cache folder outside the checkout
# (CHECKWEIGH_CACHE, or ~/.cache/checkweigh), so that each run begins where the last one ended.
set -euo pipefail

cd "$(dirname "$0")/../fuzz"
cache=${CHECKWEIGH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/checkweigh}/fuzz
host=$(rustc -vV | sed -n 's/^host: //p')

# libFuzzer itself is C++.
command -v c++ >/dev/null || ../scripts/debian-packages.sh g++ >&2

coverage=(
  --cfg fuzzing
  -Cpasses=sancov-module
  -Cllvm-args=-sanitizer-coverage-level=4
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
  -Cllvm-args=-sanitizer-coverage-pc-table
  -Cllvm-args=-sanitizer-coverage-trace-compares
)
# Naming the target keeps these flags away from build scripts and macros, which have no libFuzzer to link with.
RUSTFLAGS="${coverage[*]}" cargo build --release --locked --target "$host" --target-dir "$cache/target" >&2
binaries=$cache/target/$host/release

if [ "${1:-}" = --replay ]; then
  exec "$binaries/${2:?the target}" "${3:?the file}"
fi

seconds=${1:-60}
[ $# -gt 0 ] && shift
targets=("$@")
[ ${#targets[@]} -gt 0 ] ||
  targets=(sv1_line sv2_frame mining_server job_declarator declarations ledger_entries statement)

failed=()
for target in "${targets[@]}"; do
  corpus=$cache/corpus/$target
  crashes=$cache/crashes/$target/
  mkdir -p "$corpus" "$crashes"
  inputs=("$corpus")
  [ -d "seeds/$target" ] && inputs+=("seeds/$target")
  log=$cache/$target.log
  echo "fuzzing $target for $seconds seconds" >&2
  # -timeout: one input that takes seconds is a denial of service; -rss_limit_mb: so is one that takes the memory.
  if "$binaries/$target" -max_total_time="$seconds" -max_len=8192 -len_control=10 -timeout=10 \
    -rss_limit_mb=1024 -print_final_stats=1 -artifact_prefix="$crashes" "${inputs[@]}" >"$log" 2>&1; then
    grep -E '^(stat::number_of_executed_units|stat::average_exec_per_sec|stat::peak_rss_mb)' "$log" >&2
    grep -E 'DONE' "$log" | tail -n 1 >&2
  else
    failed+=("$target")
    tail -n 40 "$log" >&2
    echo "$target crashed; to run it again: scripts/fuzz.sh --replay $target $(ls -t "$crashes"* | head -n 1)" >&2
  fi
done
[ ${#failed[@]} -eq 0 ] || { echo "crashed: ${failed[*]}" >&2; exit 1; }
