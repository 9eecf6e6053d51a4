#!/bin/bash
# Installs the programs and their systemd units.
set -euo pipefail

readonly me=install.sh
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
readonly here
source "$here/../lib/messages.sh"
source "$here/../lib/values.sh"

usage() {
  cat <<'END'
Usage: deploy/systemd/install.sh [--programs DIR] [--root DIR]

Installs, on one host, what runs there under systemd:
  /usr/lib/switchyard/         the programs
  /etc/systemd/system/         switchyard-coordinator.service, switchyard-server@.service,
                               switchyard-worker@.service
  /etc/sysusers.d/             the user switchyard, unless there is one
  /etc/switchyard/             coordinator.flags, server.flags, worker.flags to be edited; those
                               that are there stay

  --programs DIR   the programs, or a build's bazel-bin (default: bazel-bin of this repository)
  --root DIR       install below DIR, as for an image, and tell systemd nothing
  --help           this text

Then edit the flags, put the certificates of the host's roles into /etc/switchyard/tls, where the group
switchyard may read them (deploy/make_certificates.sh), and
  systemctl enable --now switchyard-coordinator       # on one host
  systemctl enable --now switchyard-server@s0         # s1, ... where servers are to run
  systemctl enable --now switchyard-worker@w0         # w1, ...
Needs root.
END
}

root=
programs=$here/../../bazel-bin
while (($#)); do
  option=$1 value=
  shift
  case "$option" in
    --*=*) value=${option#*=} option=${option%%=*} ;;
    --root | --programs)
      (($#)) || die_usage "$option needs a value"
      value=$1
      shift
      ;;
  esac
  case "$option" in
    --root) root=$(existing_folder "$option" "$value") ;;
    --programs) programs=$(existing_folder "$option" "$value") ;;
    --help | -h)
      usage
      exit 0
      ;;
    *) die_usage "unknown option: $option" ;;
  esac
done
[[ -n $root ]] || ((EUID == 0)) || die "this needs root"

folder="$root/usr/lib/switchyard"
mkdir -p "$folder" "$root/etc/systemd/system" "$root/etc/sysusers.d" "$root/etc/switchyard"
for path in server/coordinator/coordinator server/expert_server worker/worker \
  worker/data/prepare_text client/moectl; do
  found=
  for program in "$programs/${path##*/}" "$programs/$path"; do
    if [[ -f $program && -x $program ]]; then found=$program; fi
  done
  [[ -n $found ]] || die "there is no program ${path##*/} in $programs (--programs)"
  install -m 755 -- "$found" "$folder/"
done
install -m 644 -- "$here"/*.service "$root/etc/systemd/system/"
install -m 644 -- "$here/switchyard.sysusers.conf" "$root/etc/sysusers.d/switchyard.conf"
for file in coordinator.flags server.flags worker.flags; do
  [[ -e $root/etc/switchyard/$file ]] || install -m 644 -- "$here/$file" "$root/etc/switchyard/"
done
[[ -z $root ]] || exit 0
systemd-sysusers switchyard.conf
systemctl daemon-reload
