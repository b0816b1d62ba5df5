#!/usr/bin/env bash
# Builds checkweigh and runs its demo; does its own set-up on a fresh Debian with Rust. Arguments go to the demo:
# scripts/demo.sh --miners 3 --seconds 30 --json
set -euo pipefail
cd "$(dirname "$0")/.."

# The linker, and the compiler of the one dependency that is written in C (secp256k1).
command -v cc >/dev/null || scripts/debian-packages.sh gcc libc6-dev
exec cargo run --quiet --release -- demo "$@"
