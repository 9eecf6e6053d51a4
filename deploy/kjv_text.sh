#!/bin/bash
# Writes the King James Bible, from Debian's sword-text-kjv, as a text file.
set -euo pipefail

readonly me=kjv_text.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/messages.sh"

usage() {
  cat <<'END'
Usage: deploy/kjv_text.sh OUT_FILE

Writes the King James Version (public domain, 31,102 verses, about 0.8 million
words) to OUT_FILE, a verse a line with its reference. Make training data of it
with
  prepare_text --text=OUT_FILE --strip_verse_references --min_count=3 --out=FOLDER
as deploy/run_local.sh does.
Needs the Debian packages diatheke and sword-text-kjv (deploy/install.sh runtime).
END
}

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  usage
  exit 0
fi
if (($# != 1)) || [[ $1 == -* ]]; then
  usage >&2
  exit 2
fi

readonly out=$1 module=engKJV2006eb verses=31102
readonly install="install the packages diatheke and sword-text-kjv (deploy/install.sh runtime)"

[[ ! -e $out || -f $out ]] || die "$out is there and isn't a file"
command -v diatheke >/dev/null || die "diatheke is missing; $install"
# All of the list is read: grep -q would end diatheke by SIGPIPE.
diatheke -b system -k modulelist | grep "^$module :" >/dev/null ||
  die "SWORD has no module $module; $install"

mkdir -p "$(dirname "$out")" 2>/dev/null || die "cannot create the folder of $out"
temporary=$(mktemp "$out.tmp-XXXXXX" 2>/dev/null) || die "cannot write beside $out"
trap 'rm -f "$temporary"' EXIT
diatheke -b "$module" -f plain -k "Gen 1:1-Rev 22:21" >"$temporary" ||
  die "diatheke failed, or the disk is full: $out"
# diatheke doesn't say when it couldn't write or read on.
found=$(grep -acE '^ *[A-Za-z ]+ [0-9]+:[0-9]+: ' "$temporary" || true)
[[ $found == "$verses" ]] || die "got $found verses instead of $verses; is the disk full?"
chmod 644 "$temporary"
mv -f "$temporary" "$out"
