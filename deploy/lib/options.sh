# shellcheck shell=bash
# run_local.sh: its options and its help. Needs messages.sh, values.sh and `repo`.

usage() {
  cat <<'END'
Usage: deploy/run_local.sh [OPTION...]

Trains a mixture-of-experts language model on this machine. Installs and builds what is missing,
prepares the text, starts a coordinator, expert servers and workers as separate processes on
127.0.0.1, shows the progress, evaluates, and stops every process it started.

  --servers N    expert servers (default 2)
  --workers N    workers, at most as many as the job has replicas (default 2)
  --disk_gib N   keep experts on disk, in --out, with at most N GiB a server: for models larger than
                 memory; members then wait 10 minutes for each other instead of one (default: in
                 memory; with --resume as in the run before)
  --threads N    compute threads of each server and of each worker (default: the processors
                 divided among them)
  --job FILE     the job to train (default deploy/configs/kjv-moe.textproto; with --resume the
                 job that the run began with)
  --steps N      train for N optimizer steps, whatever the job says
  --text FILE    train on this text, one sentence or paragraph a line (default: the King James
                 Bible, from Debian's sword-text-kjv)
  --data DIR     train on a text that prepare_text has already prepared
  --out DIR      where data, checkpoints and logs go (default: out, in the repository)
  --resume       go on from the last checkpoint in --out; servers, workers and threads may differ
                 from those of the first run and change nothing in the result
  --help         this text

Ctrl-C stops everything; --resume goes on from the last checkpoint.

Exit status: 0 the job finished, 1 it failed (the cause is printed), 2 wrong options, 130 or 143
stopped by Ctrl-C or SIGTERM.

Examples:
  deploy/run_local.sh
  deploy/run_local.sh --servers 4 --steps 200 --out /tmp/first
  deploy/run_local.sh --resume --servers 1 --steps 400 --out /tmp/first
  deploy/run_local.sh --text book.txt --job deploy/configs/tiny.textproto --out /tmp/book
END
}

servers=2
workers=2
threads=
disk_gib=
job=
steps=
text=
data=
out="$repo/out"
resume=0

parse_options() {
  while (($#)); do
    local option=$1 value=
    shift
    case "$option" in
      --*=*) value=${option#*=} option=${option%%=*} ;;
      --servers | --workers | --threads | --disk_gib | --job | --steps | --text | --data | --out)
        (($#)) || die_usage "$option needs a value"
        value=$1
        shift
        ;;
    esac
    case "$option" in
      --servers) servers=$(count "$option" "$value") ;;
      --workers) workers=$(count "$option" "$value") ;;
      --threads) threads=$(count "$option" "$value") ;;
      --disk_gib) disk_gib=$(count "$option" "$value") ;;
      --steps) steps=$(count "$option" "$value") ;;
      --job) job=$(existing_file "$option" "$value") ;;
      --text) text=$(existing_file "$option" "$value") ;;
      --data) data=$(existing_folder "$option" "$value") ;;
      --out)
        [[ -n $value ]] || die_usage "--out needs a folder"
        out=$value
        ;;
      --resume) resume=1 ;;
      --help | -h)
        usage
        exit 0
        ;;
      *) die_usage "unknown option: $option" ;;
    esac
  done
  [[ -z $text || -z $data ]] || die_usage "--text and --data exclude each other"
}
