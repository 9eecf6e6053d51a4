#!/bin/bash
# Builds prepare_text where that is needed, and runs it.
set -euo pipefail

readonly me=prepare_text.sh
repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
readonly repo
source "$repo/deploy/lib/messages.sh"

usage() {
  cat <<'END'
Usage: deploy/prepare_text.sh FLAG...

Turns text into the token files that workers train on: installs and builds what
is missing and runs prepare_text with the flags, which --help shows.

  deploy/prepare_text.sh --text book.txt --out DATA
  deploy/prepare_text.sh --one_billion_words \
      1-billion-word-language-modeling-benchmark-r13output \
      --vocabulary_file vocabulary.txt --out DATA

Then, for training:
  deploy/run_local.sh --data DATA --job JOB
END
}

if ((!$#)); then
  usage
  exit 2
fi
"$repo/deploy/install.sh" build runtime
env -C "$repo" bazel build -c opt --jobs=2 --color=no --curses=no --noshow_progress \
  --show_result=0 //worker/data:prepare_text >&2 || die "the build failed"
exec "$repo/bazel-bin/worker/data/prepare_text" "$@"
