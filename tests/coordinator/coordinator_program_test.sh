#!/bin/bash
# The coordinator's command line.
set -u
coordinator=server/coordinator/coordinator
dir=$TEST_TMPDIR
failures=0

# expect STATUS PATTERN ARGUMENT...: runs the coordinator to its end.
expect() {
  local status=$1 pattern=$2
  shift 2
  local output
  output=$(timeout 30 "$coordinator" "$@" 2>&1)
  local got=$?
  if [[ $got -ne $status ]] || ! grep -q -- "$pattern" <<<"$output"; then
    echo "coordinator $*: status $got, not $status, or no '$pattern' in:"
    echo "$output"
    failures=$((failures + 1))
  fi
}

cat >"$dir/job.textproto" <<'EOF'
name: "small"
model { d_model: 4 layers { lstm { hidden: 4 } } }
optimizer { sgd {} schedule { base_rate: 1 constant {} } }
training { replicas: 1 waves: 1 lanes: 2 unroll: 5 steps: 4 }
EOF
train=(--job "$dir/job.textproto" --checkpoint_dir "$dir/checkpoints" --listen 127.0.0.1:0)

expect 0 "coordinator --job FILE" --help
for flag in job listen servers workers checkpoint_dir state_dir resume supervised linger evaluate checkpoint \
  heartbeat_ms lease_ms report_timeout_s port_file result_json store leader_lease_s; do
  expect 0 "--$flag" --help
done
expect 2 "job is missing" --checkpoint_dir "$dir/checkpoints"
expect 2 "checkpoint_dir is missing" --job "$dir/job.textproto"
expect 2 "validation or test, not train" --evaluate train --checkpoint "$dir"
expect 2 "needs a --checkpoint" --evaluate test
expect 2 "goes with --resume" "${train[@]}" --checkpoint "$dir"
expect 2 "unexpected argument" "${train[@]}" argument
for store in elsewhere etcd://a:1 etcd://a/jobs; do
  expect 2 "isn't of the form etcd://host:port" "${train[@]}" --store "$store"
done
expect 2 "leader_lease_s must be at least 2" "${train[@]}" --store etcd://a:1/jobs --leader_lease_s 1
expect 2 "store_timeout_s must be at least 1" "${train[@]}" --store etcd://a:1/jobs --store_timeout_s 0
expect 2 "store is for training" --evaluate test --checkpoint "$dir" --store etcd://a:1/jobs --job \
  "$dir/job.textproto"
expect 1 "nowhere.pem" "${train[@]}" --store etcd://a:1/jobs --etcd_ca "$dir/nowhere.pem"
expect 1 "nowhere.textproto" --job "$dir/nowhere.textproto" --checkpoint_dir "$dir/checkpoints"
expect 1 "holds no checkpoint" "${train[@]}" --resume
expect 1 "holds no checkpoint" --evaluate test --checkpoint "$dir/checkpoints"
expect 1 "training.replicas is 1" "${train[@]}" --workers 2

# A signal ends it with the cause in one line, and the result on disk.
"$coordinator" "${train[@]}" --port_file "$dir/port" --result_json "$dir/result.json" \
  >"$dir/out" 2>"$dir/err" &
pid=$!
for _ in $(seq 300); do
  [[ -s $dir/port ]] && break
  sleep 0.1
done
grep -qE '^127\.0\.0\.1:[1-9][0-9]*$' "$dir/port" || {
  echo "no address in the port file"
  failures=$((failures + 1))
}
kill -TERM "$pid"
wait "$pid"
status=$?
if [[ $status -ne 1 ]] || ! grep -q "^coordinator: the coordinator was told to stop$" "$dir/err" ||
  ! grep -q '"phase": "FAILED"' "$dir/result.json" ||
  ! grep -q "waiting for 1 of 1 server and 1 of 1 worker" "$dir/out"; then
  echo "stopped: status $status"
  cat "$dir/out" "$dir/err" "$dir/result.json"
  failures=$((failures + 1))
fi

[[ $failures -eq 0 ]]
