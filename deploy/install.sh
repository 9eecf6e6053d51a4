#!/bin/bash
# Installs the Debian packages of deploy/packages.txt that are missing.
set -euo pipefail

readonly me=install.sh
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
readonly here
source "$here/lib/messages.sh"

usage() {
  cat <<'END'
Usage: deploy/install.sh [--check] [--help] [GROUP...]

Installs the Debian packages named in deploy/packages.txt that are missing: of
the groups named (build, runtime, test, corpus, experiments, fuzz, libraries), or of
the first three. Does nothing where all are present. Needs root or sudo only to install.

  --check   install nothing; list what is missing and exit 1 if anything is
  --help    this text
END
}

check=0
groups=()
for arg in "$@"; do
  case "$arg" in
    --check) check=1 ;;
    -h | --help) usage; exit 0 ;;
    build | runtime | test | corpus | experiments | fuzz | libraries) groups+=("$arg") ;;
    *) die_usage "unknown argument: $arg" ;;
  esac
done

readonly list="$here/packages.txt"
[[ -r $list ]] || die "cannot read $list"
command -v dpkg-query >/dev/null || die "this needs Debian 12 (no dpkg-query here); install by hand what $list names"

((${#groups[@]})) || groups=(build runtime test)

mapfile -t wanted < <(awk -v groups=" ${groups[*]} " '
  { sub(/#.*/, "") }
  /^\[.*\]/ { open = index(groups, " " substr($1, 2, length($1) - 2) " "); next }
  NF && open { print $1 }' "$list")
# dpkg-query fails when it knows nothing of a package; that package is then simply missing.
installed=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${wanted[@]}" 2>/dev/null || true)

missing=()
for package in "${wanted[@]}"; do
  grep -qxF "$package installed" <<<"$installed" || missing+=("$package")
done

((${#missing[@]})) || exit 0
if ((check)); then
  echo "missing: ${missing[*]}"
  exit 1
fi

as_root=()
if ((EUID != 0)); then
  if ! command -v sudo >/dev/null; then
    die "packages are missing and this is neither root nor has sudo. As root, run:
  apt-get install --no-install-recommends ${missing[*]}"
  fi
  as_root=(sudo)
fi

apt() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q "$@"
}

echo "Installing ${#missing[@]} packages: ${missing[*]}"
if ! apt install -y --no-install-recommends "${missing[@]}"; then
  # The usual cause is a list of packages that is missing or out of date.
  echo "Updating apt's lists and trying once more"
  apt update || die "apt-get update failed; its message is above"
  apt install -y --no-install-recommends "${missing[@]}" ||
    die "apt-get could not install: ${missing[*]} (its message is above; this needs Debian 12)"
fi
