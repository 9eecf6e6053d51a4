# shellcheck shell=bash
# What the scripts of this folder say. The script sets `me`, its name.

say() { printf '%s\n' "$*"; }

# For errors: standard error as it was at the start. A script may later send its own to a log.
exec {errors}>&2

die() {
  printf '%s: %s\n' "$me" "$*" >&"$errors"
  exit 1
}

die_usage() {
  printf '%s: %s (see --help)\n' "$me" "$*" >&"$errors"
  exit 2
}
