# shellcheck shell=bash
# train.sbatch: its options and its help. Needs messages.sh, values.sh and `here`.

usage() {
  cat <<'END'
Usage: sbatch [OF_SBATCH...] deploy/slurm/train.sbatch --job FILE --out DIR [OPTION...]

Trains a job on an allocation of Slurm: one coordinator on its first node, expert servers and workers
as job steps, spread over the tasks of the allocation.

  --job FILE       the job to train
  --out DIR        a folder that all nodes share: data, checkpoints, state, logs, result.json
  --data DIR       text that prepare_text has prepared, where all nodes see it
  --text FILE      prepare this text in --out first (one of --data and --text)
  --servers N      expert servers (default 2)
  --workers N      workers, at most as many as the job has replicas (default 2)
  --threads N      compute threads of each member (default: --cpus-per-task of the allocation, or 1)
  --programs DIR   the programs, or a build's bazel-bin (default: bazel-bin of this script's repository)
  --host COMMAND   prints the name or address at which other nodes reach the one it runs on
                   (default: hostname), as where there is a faster network than that of the names
  --tls DIR        encrypt, with ca.crt and the certificates and keys of the roles coordinator, server,
                   worker and operator in DIR, as deploy/make_certificates.sh names them; those of the
                   first two name every node
  --insecure       don't: the nodes' network is to be trusted (one of --tls and --insecure)
  --requeue        at the time limit, queue the job again rather than end it with status 75
  --flags FILE     further flags of each program, a line each: coordinator --lease_ms=10000
  --help           this text

The allocation needs 1 + servers + workers tasks: sbatch --ntasks=7 ... --servers 4 --workers 2.

A member that is lost, with its node or without, is started again, on the node of another task if its
own doesn't start it; the job goes on from its last checkpoint. Submitted again, or requeued after the
loss of the first node, the same command goes on from there, too. Two minutes before the time limit a
checkpoint is taken. scancel ends everything within seconds, without one; to take one first, signal the
script: scancel --batch --signal=USR1 JOBID

Slurm's output of the job shows the progress; OUT/logs has a file for each process, and
OUT/coordinator.address is for moectl --coordinator.

Exit status: 0 the job finished, 1 it failed (the cause is printed), 2 wrong options, 75 the time is
over and the same command goes on, 143 cancelled.

Example:
  sbatch --ntasks=5 --cpus-per-task=8 --time=8:00:00 deploy/slurm/train.sbatch \
      --job deploy/configs/kjv-moe.textproto --data /shared/kjv --out /shared/run1 --tls ~/certificates
END
}

job=
out=
data=
text=
servers=2
workers=2
threads=${SLURM_CPUS_PER_TASK:-1}
programs_folder=$here/../../bazel-bin
host_command=hostname
tls=
insecure=0
requeue=0
flags_file=

parse_options() {
  local option value
  while (($#)); do
    option=$1 value=
    shift
    case "$option" in
      --*=*) value=${option#*=} option=${option%%=*} ;;
      --job | --out | --data | --text | --servers | --workers | --threads | --programs | --host | \
        --flags | --tls)
        (($#)) || die_usage "$option needs a value"
        value=$1
        shift
        ;;
    esac
    case "$option" in
      --job) job=$(existing_file "$option" "$value") ;;
      --out) out=$value ;;
      --data) data=$(existing_folder "$option" "$value") ;;
      --text) text=$(existing_file "$option" "$value") ;;
      --servers) servers=$(count "$option" "$value") ;;
      --workers) workers=$(count "$option" "$value") ;;
      --threads) threads=$(count "$option" "$value") ;;
      --programs) programs_folder=$(existing_folder "$option" "$value") ;;
      --host) host_command=$value ;;
      --tls) tls=$(existing_folder "$option" "$value") ;;
      --insecure) insecure=1 ;;
      --requeue) requeue=1 ;;
      --flags) flags_file=$(existing_file "$option" "$value") ;;
      --help | -h)
        usage
        exit 0
        ;;
      *) die_usage "unknown option: $option" ;;
    esac
  done
  [[ -n $job ]] || die_usage "--job is missing"
  [[ -n $out ]] || die_usage "--out is missing: a folder that all nodes share"
  [[ -n $data || -n $text ]] || die_usage "give --data or --text"
  [[ -z $data || -z $text ]] || die_usage "--text and --data exclude each other"
  [[ -n $tls ]] || ((insecure)) || die_usage "give --tls, or --insecure on a network to be trusted"
  [[ -z $tls ]] || ((!insecure)) || die_usage "--tls and --insecure exclude each other"
  [[ -n ${SLURM_JOB_ID:-} ]] || die_usage "this is no job of Slurm; submit it with sbatch"
}

# Sets coordinator_program and so on, from an installation's folder or a build's.
find_programs() {
  coordinator_program=$(program coordinator server/coordinator/coordinator)
  server_program=$(program expert_server server/expert_server)
  worker_program=$(program worker worker/worker)
  moectl_program=$(program moectl client/moectl)
  prepare_program=$(program prepare_text worker/data/prepare_text)
}

program() {
  local path
  for path in "$programs_folder/$1" "$programs_folder/$2"; do
    if [[ -f $path && -x $path ]]; then
      realpath -s -- "$path"
      return
    fi
  done
  die "there is no program $1 in $programs_folder (--programs)"
}

# flags_of PROGRAM ROLE: a flag a line: how it talks to others, and its lines of --flags.
flags_of() {
  if [[ -n $tls ]]; then
    printf '%s\n' --tls_ca "$tls/ca.crt" --tls_cert "$tls/$2.crt" --tls_key "$tls/$2.key"
  elif [[ $2 == coordinator || $2 == server ]]; then
    say --insecure
  fi
  [[ -z $flags_file ]] || sed -n "s/^$1[[:space:]]\{1,\}//p" "$flags_file"
}
