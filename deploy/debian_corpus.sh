#!/bin/bash
# Puts together a corpus of English prose from Debian's documentation packages.
set -euo pipefail

readonly me=debian_corpus.sh
folder="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
readonly folder
source "$folder/lib/messages.sh"
source "$folder/lib/values.sh"

usage() {
  cat <<'END'
Usage: deploy/debian_corpus.sh --out DIR [OPTION...]

Puts together 20 million words or more of English prose from documentation
packages of Debian 12 (main), named with their licences in
deploy/corpus/packages.txt. Downloads each package with apt-get download and
unpacks it in a cache folder; installs none of them. Keeps paragraphs of whole
English sentences; code, tables, headings, navigation and licence texts go.
Of paragraphs that differ only in case, digits and punctuation the first stays,
and documents more than half of which is elsewhere go.

Writes, into DIR,
  train.txt, validation.txt, test.txt
              a paragraph a line, a blank line between documents; validation
              and test have 1 % of the documents each, whole
  README.md   packages, versions, licences, words and checksums
  copyright/  the packages' copyright files
The same versions of the packages give the same bytes.

Options:
  --out DIR     where the corpus goes
  --words N     take packages, in their order, until there are N words
                (default 20000000)
  --cache DIR   where packages and their text are kept (default:
                ~/.cache/switchyard/corpus); about 1 GB, which may be removed
                when the corpus is there
  --jobs N      processes that read (default: the processors)
  --help        this text

Stopped, for whatever reason, the same command goes on where it was.
Needs Debian's main section, apt's lists (apt-get update), python3-lxml,
diatheke and perl, which it installs if they are missing. Downloads 0.4 GB;
then it takes 4 minutes on two cores.

Then, for training:
  prepare_text --train DIR/train.txt --validation DIR/validation.txt \
      --test DIR/test.txt --min_count 3 --out DATA
  deploy/run_local.sh --data DATA --job JOB

Exit status: 0 the corpus is complete, 1 it failed (the cause is printed), 2
wrong options, 130 or 143 stopped by Ctrl-C or SIGTERM.
END
}

out=
words=20000000
cache="${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/switchyard/corpus"
jobs=$(nproc)
while (($#)); do
  option=$1 value=
  shift
  case "$option" in
    --*=*) value=${option#*=} option=${option%%=*} ;;
    --out | --words | --cache | --jobs)
      (($#)) || die_usage "$option needs a value"
      value=$1
      shift
      ;;
  esac
  case "$option" in
    --out) out=$value ;;
    --words) words=$(count "$option" "$value") ;;
    --cache) cache=$value ;;
    --jobs) jobs=$(count "$option" "$value") ;;
    --help | -h)
      usage
      exit 0
      ;;
    *) die_usage "unknown option: $option" ;;
  esac
done
[[ -n $out ]] || die_usage "give --out, the folder to write"
[[ -n $cache ]] || die_usage "--cache needs a folder"

"$folder/install.sh" corpus
exec /usr/bin/python3 "$folder/corpus/build.py" --out "$out" --words "$words" --cache "$cache" \
  --jobs "$jobs"
