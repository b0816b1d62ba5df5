#!/usr/bin/env bash
# Prints the path of a bitcoin-node binary for the tests, building one the first time.
#
# BITCOIN_NODE, when it is set, names an existing node and nothing is built.
# Otherwise the Bitcoin Core sources that the crate libbitcoinkernel-sys carries are built, once, into
# a cache folder outside the checkout (CHECKWEIGH_CACHE, or ~/.cache/checkweigh): about eight minutes on two cores.
# Progress goes to standard error, so that the last line of standard output is the path.
set -euo pipefail

if [ -n "${BITCOIN_NODE:-}" ]; then
  [ -x "$BITCOIN_NODE" ] || { echo "BITCOIN_NODE=$BITCOIN_NODE is not an executable file" >&2; exit 1; }
  echo "$BITCOIN_NODE"
  exit 0
fi

kernel_crate_version=0.4.1
cache=${CHECKWEIGH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/checkweigh}
place=$cache/bitcoin-node-$kernel_crate_version
node=$place/bin/bitcoin-node
if [ -x "$node" ]; then
  echo "$node"
  exit 0
fi

mkdir -p "$place"
# Two test runs that start together must not build in the same folder.
exec 9>"$place/lock"
flock 9
if [ -x "$node" ]; then
  echo "$node"
  exit 0
fi

"$(dirname "$0")/debian-packages.sh" cmake ninja-build g++ libboost-dev capnproto libcapnp-dev pkgconf >&2

# The crate is only fetched, never compiled: a throw-away manifest names it.
mkdir -p "$place/fetch/src"
cat > "$place/fetch/Cargo.toml" <<MANIFEST
[package]
name = "fetch-bitcoin-core-sources"
version = "0.0.0"
edition = "2021"
[workspace]
[dependencies]
libbitcoinkernel-sys = "=$kernel_crate_version"
MANIFEST
: > "$place/fetch/src/lib.rs"
cargo fetch --manifest-path "$place/fetch/Cargo.toml" >&2
crate_manifest=$(cargo metadata --format-version 1 --manifest-path "$place/fetch/Cargo.toml" \
  | grep -o "\"manifest_path\":\"[^\"]*libbitcoinkernel-sys-$kernel_crate_version/Cargo.toml\"" \
  | head -n 1 | cut -d'"' -f4)
sources=$(dirname "$crate_manifest")/bitcoin
[ -f "$sources/CMakeLists.txt" ] || { echo "no Bitcoin Core sources at $sources" >&2; exit 1; }

echo "building bitcoin-node from $sources (about eight minutes on two cores)" >&2
cmake -S "$sources" -B "$place/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS_RELEASE=-O1 \
  -DBUILD_TESTS=OFF -DBUILD_BENCH=OFF -DBUILD_TX=OFF -DBUILD_UTIL=OFF -DBUILD_WALLET_TOOL=OFF -DBUILD_BITCOIN_BIN=OFF \
  -DENABLE_WALLET=OFF -DENABLE_EXTERNAL_SIGNER=OFF -DWITH_ZMQ=OFF -DENABLE_IPC=ON -DWITH_EMBEDDED_ASMAP=OFF \
  -DINSTALL_MAN=OFF >&2
ninja -C "$place/build" -j "$(nproc)" bitcoin-node bitcoin-cli >&2

mkdir -p "$place/bin"
strip -o "$place/bin/bitcoin-cli" "$place/build/bin/bitcoin-cli"
strip -o "$place/bin/bitcoin-node.part" "$place/build/bin/bitcoin-node"
# The rename comes last: a build that was cut off leaves no binary that looks whole.
mv "$place/bin/bitcoin-node.part" "$node"
rm -rf "$place/build"
echo "$node"
