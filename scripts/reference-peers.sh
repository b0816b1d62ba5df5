#!/usr/bin/env bash
# Prints the folder that holds the binaries of the reference implementation that were asked for, installing them the
# first time. Usage: reference-peers.sh translator_sv2 [mining_device ...]
#
# They come from the registry through cargo, go into a cache folder outside the checkout (CHECKWEIGH_CACHE, or
# ~/.cache/checkweigh), and share one target folder there, so that what they have in common is built once.
set -euo pipefail

version=0.6.0
cache=${CHECKWEIGH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/checkweigh}
place=$cache/reference-peers-$version

# Whoever has what it needs does not wait for an installation of something else.
missing=
for peer in "$@"; do
  [ -x "$place/bin/$peer" ] || missing=yes
done
[ -n "$missing" ] || { echo "$place/bin"; exit 0; }

mkdir -p "$place"
exec 9>"$place/lock"
flock 9

for peer in "$@"; do
  case $peer in
    translator_sv2) crate=translator_sv2 ;;
    mining_device) crate=integration_tests_sv2 ;;
    *) echo "no such peer: $peer" >&2; exit 1 ;;
  esac
  [ -x "$place/bin/$peer" ] && continue
  "$(dirname "$0")/debian-packages.sh" g++ pkgconf capnproto libcapnp-dev >&2
  echo "installing $peer $version (several minutes)" >&2
  CARGO_TARGET_DIR="$place/target" cargo install --quiet --locked --root "$place" --bin "$peer" "$crate@$version" >&2
done
echo "$place/bin"
