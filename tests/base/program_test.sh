#!/bin/bash
# The command line that all programs share.
set -uo pipefail

program=./tests/base/program_test_program
failures=0

# expect STATUS TEXT ARGUMENTS...: the exit status, and a piece of the output.
expect() {
  local status=$1 text=$2 output
  shift 2
  output=$("$program" "$@" 2>&1)
  local got=$?
  if [[ $got != "$status" || $output != *"$text"* ]]; then
    echo "FAILED: $* gave $got instead of $status, or lacks '$text': $output" >&2
    failures=$((failures + 1))
  fi
}

expect 0 "3 a"
expect 0 "5 b argument" --number=5 argument --word b
expect 0 "--number (default: 3)" --help
expect 0 '--word (default: "a")' --number=1 --help
expect 0 "program prints its flags." -h
expect 0 "--flagfile" --help
expect 0 "program_test_program 0." --version
expect 0 "3 a --help" -- --help
expect 0 "3 a 1610612736 bytes" --size_gib=1.5
expect 2 "nonsense" --nonsense
expect 2 "number" --number=many
expect 2 "must not be negative" --number=-1
expect 2 "--size_gib is -1; it must be from 0 to 1e9" --size_gib=-1
expect 2 "--size_gib is nan" --size_gib=nan
expect 2 "unexpected argument 'two'" one two

printf -- '# comment\n--number=9\n' >"$TEST_TMPDIR/flags"
expect 0 "9 a" --flagfile="$TEST_TMPDIR/flags"
expect 0 "1 a" --flagfile="$TEST_TMPDIR/flags" --number=1
expect 2 "missing" --flagfile="$TEST_TMPDIR/missing"

# Only our own flags are in the help, and a full disk is no success.
if "$program" --help | grep -q undefok; then
  echo "FAILED: --help shows Abseil's own flags" >&2
  failures=$((failures + 1))
fi
if "$program" --help >/dev/full; then
  echo "FAILED: --help on a full device succeeds" >&2
  failures=$((failures + 1))
fi
exit $((failures > 0))
