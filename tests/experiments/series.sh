# shellcheck shell=bash
# Series of training runs that can be stopped and continued. Sourced, in the repository's root.
#
# A series is a folder OUT: for each run NAME the job OUT/NAME.textproto, and OUT/NAME, a folder of
# deploy/run_local.sh.

readonly me="${0##*/}"
source deploy/lib/messages.sh
source deploy/lib/values.sh

failed=() # names of the runs that failed

is_finished() { grep -qs '"phase": "FINISHED"' "$1/result.json"; }

# open_series OUT RESUME: without RESUME (0 or 1) OUT must hold no run yet.
open_series() {
  mkdir -p -- "$1" 2>/dev/null || die "cannot create the folder $1"
  (($2)) || ! compgen -G "$1/*/job.textproto" >/dev/null ||
    die "$1 already holds runs: go on with them by --resume, or give another folder by --out"
}

# train OUT NAME OPTION...: trains the job on standard input as OUT/NAME; OPTIONs are run_local.sh's.
# A finished run stays as it is, an interrupted one goes on from its last checkpoint. A run that fails
# is noted in `failed`; one that is stopped ends the script: so train can't stand behind a pipe.
train() {
  local job="$1/$2.textproto" folder="$1/$2" name=$2 status=0
  shift 2
  cat >"$job.new"
  if [[ -e $folder ]] && ! cmp -s "$job" "$job.new"; then
    diff "$job" "$job.new" >&2 || true
    die "$folder was begun with another job (above); give another folder by --out"
  fi
  mv "$job.new" "$job"
  if is_finished "$folder"; then
    printf '== %s: finished already\n' "$name"
    return
  fi
  printf '== %s\n' "$name"
  if compgen -G "$folder/checkpoints/step-*/manifest.json" >/dev/null; then
    deploy/run_local.sh --resume --out "$folder" "$@" || status=$?
  else
    deploy/run_local.sh --job "$job" --out "$folder" "$@" || status=$?
  fi
  ((status != 0)) || return 0
  ((status == 1)) || exit "$status"
  failed+=("$name")
}

# Says which runs failed, if any, and ends the script.
end_series() {
  ((${#failed[@]} == 0)) || die "failed: ${failed[*]}; --resume tries them again"
}
