# shellcheck shell=bash
# run_local.sh: the run's folder and the job in it. Needs messages.sh and the options.
#
#   OUT/job.textproto   the job as it runs
#   OUT/data/           vocabulary and words; source.txt says of which text. Or a link to --data
#   OUT/checkpoints/    step-<step>/ each
#   OUT/state/          the coordinator's
#   OUT/disk_gib        what --disk_gib was, for --resume
#   OUT/logs/
#   OUT/result.json     written at the end of the job

open_out() {
  mkdir -p -- "$out" 2>/dev/null || die "cannot create the folder $out"
  out=$(realpath -- "$out")
  [[ -w $out ]] || die "the folder $out is not writable"
  logs="$out/logs"
  mkdir -p "$logs"
  exec {lock}>"$out/.lock"
  flock -n "$lock" || die "another run is using $out; give this one another --out"

  local last
  last=$(last_checkpoint)
  if ((resume)); then
    [[ -n $last ]] || die "there is no checkpoint in $out to go on from; start without --resume"
  elif [[ -n $last ]]; then
    die "$out already holds a run (checkpoint ${last##*/}): go on with it by --resume, give
  another folder by --out, or remove this one"
  else
    # Of a run that ended before its first checkpoint.
    rm -f "$out/result.json" "$out/job.textproto" "$out/disk_gib"
  fi
  remember_disk
}

# A run whose experts are on disk may have no room for them in memory.
remember_disk() {
  local file="$out/disk_gib"
  if [[ -n $disk_gib ]]; then
    say "$disk_gib" >"$file"
  elif ((resume)) && [[ -f $file ]]; then
    disk_gib=$(count "$file" "$(<"$file")")
    say "Experts are on disk as before, at most $disk_gib GiB a server (--disk_gib; without: remove
  $file)"
  fi
}

# The newest committed checkpoint's folder; empty if there is none.
last_checkpoint() {
  local manifest last=
  for manifest in "$out"/checkpoints/step-*/manifest.json; do
    [[ -f $manifest ]] && last=${manifest%/manifest.json}
  done
  say "$last"
}

prepare_job() {
  if [[ -z $job ]]; then
    job="$repo/deploy/configs/kjv-moe.textproto"
    if ((resume)) && [[ -f $out/job.textproto ]]; then job="$out/job.textproto"; fi
  fi
  local derived
  derived=$(if [[ -n $steps ]]; then set_steps "$steps" "$job"; else cat "$job"; fi)
  say "$derived" >"$out/job.textproto"
  # Errors shall name the user's own file where they can.
  if [[ -n $steps ]]; then job="$out/job.textproto"; fi
}

# set_steps N FILE: the job with training.steps = N. Reads just enough text format for that: names,
# braces, comments and strings.
set_steps() {
  awk -v steps="$1" '
    { text = text $0 "\n" }
    END {
      depth = 0; training = 0; done = 0
      while (length(text) > 0) {
        if (match(text, /^#[^\n]*/) || match(text, /^"([^"\\\n]|\\.)*"/) ||
            match(text, /^[A-Za-z0-9_.+-]+/) || match(text, /^[ \t\r\n]+/)) {
          token = substr(text, 1, RLENGTH)
        } else {
          token = substr(text, 1, 1)
        }
        text = substr(text, length(token) + 1)
        if (token ~ /^[{<]/) {
          if (++depth == 1) training = name == "training"
        } else if (token ~ /^[}>]/) {
          if (--depth == 0 && training && !done) { token = "  steps: " steps "\n" token; done = 1 }
        } else if (token == "steps" && training && depth == 1) {
          sub(/^[ \t\r\n]*:[ \t\r\n]*[0-9]+/, ": " steps, text)
          done = 1
        } else if (token ~ /^[A-Za-z0-9_]/) {
          name = token
        }
        printf "%s", token
      }
      if (!done) printf "training { steps: %s }\n", steps
    }' "$2"
}
