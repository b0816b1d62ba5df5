#!/usr/bin/env bash
# Prints the folder that holds the binaries of the reference implementation that were asked for, installing them the
# first time. Usage: reference-peers.sh translator_sv2 [jd_client_sv2 pool_sv2 mining_device ...]
#
# They come from the registry through cargo, go into a cache folder outside the checkout (CHECKWEIGH_CACHE, or
# ~/.cache/checkweigh), and share one target folder there, so that what they have in common is built once.
set -euo pipefail

# Every application has a version of its own; what they have in common is the release of stratum-core that they are
# built on, and the folder is named after that one. A version that changes below is installed over the one before.
stratum_core_version=0.6.0
cache=${CHECKWEIGH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/checkweigh}
place=$cache/reference-peers-$stratum_core_version

# The crate and the version that a peer's binary comes from.
crate_of() {
  case $1 in
    translator_sv2) echo translator_sv2 0.6.0 ;;
    jd_client_sv2) echo jd_client_sv2 0.6.0 ;;
    pool_sv2) echo pool_sv2 0.7.0 ;;
    mining_device) echo integration_tests_sv2 0.6.0 ;;
    *) echo "no such peer: $1" >&2; return 1 ;;
  esac
}

# Whether a peer's binary is there, and cargo's own record says that it is of the version above.
installed() {
  local origin
  origin=$(crate_of "$1") || exit 1
  [ -x "$place/bin/$1" ] && grep -qF "\"$origin (" "$place/.crates.toml" 2>/dev/null
}

# Whoever has what it needs does not wait for an installation of something else.
missing=
for peer in "$@"; do
  installed "$peer" || missing=yes
done
[ -n "$missing" ] || { echo "$place/bin"; exit 0; }

mkdir -p "$place"
exec 9>"$place/lock"
flock 9

# Peers that only have to answer are built for a short build: the applications themselves and what the translator does
# not share are not optimised. The translator is measured against (benches/), so it is the release that its authors ship.
quick=()
for crate in pool_sv2 jd_server_sv2 jd_client_sv2 integration_tests_sv2 stratum-apps bitcoin_core_sv2 bitcoin-capnp-types; do
  quick+=(--config "profile.release.package.$crate.opt-level=0")
done

for peer in "$@"; do
  installed "$peer" && continue
  read -r crate version <<< "$(crate_of "$peer")"
  "$(dirname "$0")/debian-packages.sh" g++ pkgconf capnproto libcapnp-dev >&2
  echo "installing $peer $version (several minutes)" >&2
  profile=("${quick[@]}")
  [ "$peer" = translator_sv2 ] && profile=()
  CARGO_TARGET_DIR="$place/target" cargo install --quiet --locked --root "$place" "${profile[@]}" \
    --bin "$peer" "$crate@$version" >&2
done
echo "$place/bin"
