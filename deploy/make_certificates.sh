#!/bin/bash
# Makes a certificate authority and certificates for the roles of a cluster, with openssl.
set -euo pipefail

readonly me=make_certificates.sh
repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
readonly repo
source "$repo/deploy/lib/messages.sh"

usage() {
  cat <<'END'
Usage: deploy/make_certificates.sh --out DIR [--host HOST]... [--role ROLE]... [--name NAME]
           [--from TIME] [--until TIME]

Makes DIR/ca.crt and DIR/ca.key, a certificate authority of your own, unless they are there, and a
certificate and key for each role, DIR/ROLE.crt and DIR/ROLE.key, in the place of those before. For a
try-out, and for clusters that have no authority yet. Whoever has ca.key can join the cluster in any
role: keep it off the cluster's machines.

  --out DIR      where the files are and go
  --host HOST    a name or an IP address of the machine that the certificate is for, as in the
                 addresses by which others reach it; may be repeated. Default: localhost, 127.0.0.1,
                 ::1 and this machine's name. Workers and operators don't need any
  --role ROLE    coordinator, server, worker, operator or observer; may be repeated. Default: all
  --name NAME    the certificate's subject, and its files' name. Default: the role
  --from TIME    when certificates begin to be valid. Default: '1 hour ago', for clocks that differ
  --until TIME   when they end, the authority's, too, if it is made. Default: '90 days'. Times are as
                 date(1) takes them

For one machine, or to try:
  deploy/make_certificates.sh --out certificates
For several, here a, b and c:
  deploy/make_certificates.sh --out certificates --role coordinator --host a
  deploy/make_certificates.sh --out certificates --role server --name server-b --host b
  deploy/make_certificates.sh --out certificates --role server --name server-c --host c
  deploy/make_certificates.sh --out certificates --role worker --role operator --role observer

The same commands again renew certificates; processes read files that change again by themselves.
END
}

out=
hosts=()
roles=()
name=
from='1 hour ago'
until='90 days'

while (($#)); do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --out | --host | --role | --name | --from | --until)
      (($# > 1)) || die_usage "$1 needs a value"
      case "$1" in
        --out) out=$2 ;;
        --host) hosts+=("$2") ;;
        --role) roles+=("$2") ;;
        --name) name=$2 ;;
        --from) from=$2 ;;
        --until) until=$2 ;;
      esac
      shift 2
      ;;
    *) die_usage "unknown option: $1" ;;
  esac
done
[[ -n $out ]] || die_usage "--out is missing"
((${#hosts[@]})) || hosts=(localhost 127.0.0.1 ::1 "$(uname -n)")
((${#roles[@]})) || roles=(coordinator server worker operator observer)
for role in "${roles[@]}"; do
  [[ $role =~ ^(coordinator|server|worker|operator|observer)$ ]] ||
    die_usage "--role is '$role'; it must be coordinator, server, worker, operator or observer"
done
for host in "${hosts[@]}"; do
  [[ $host =~ ^[A-Za-z0-9.:_*-]+$ ]] || die_usage "--host is '$host', no name and no address"
done
[[ -z $name || ${#roles[@]} -eq 1 ]] || die_usage "--name goes with one --role"
[[ -z $name || $name =~ ^[A-Za-z0-9._-]+$ && $name != ca ]] ||
  die_usage "--name is '$name'; it must be of letters, digits, '.', '_' and '-', and not ca"
command -v openssl >/dev/null || die "there is no openssl; deploy/install.sh runtime installs it"

to_utc() { date --utc --date="$2" +%Y%m%d%H%M%SZ 2>/dev/null || die_usage "$1 is '$2', no time"; }
start=$(to_utc --from "$from")
end=$(to_utc --until "$until")
[[ $start < $end ]] || die_usage "--until must be later than --from"

mkdir -p "$out" || die "cannot make the folder $out"
work=$(mktemp -d "$out/.work-XXXXXX")
trap 'rm -rf "$work"' EXIT
umask 077

# openssl's own words appear only when it fails.
run_openssl() { openssl "$@" 2>"$work/errors" >&2 || die "openssl $1 failed: $(<"$work/errors")"; }

new_key_and_request() {
  run_openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$work/key" \
    -out "$work/request" -subj "/O=Switchyard/CN=$1"
}

# Signs the request with the extensions of $work/extensions; the arguments say with which key.
sign() {
  : >"$work/index"
  cat >"$work/ca.conf" <<END
[ca]
default_ca = here
[here]
database = $work/index
new_certs_dir = $work
policy = any
default_md = sha256
unique_subject = no
rand_serial = yes
[any]
organizationName = supplied
commonName = supplied
END
  run_openssl ca -batch -notext -config "$work/ca.conf" -extfile "$work/extensions" \
    -in "$work/request" -out "$work/certificate" -startdate "$start" -enddate "$end" "$@"
}

# The key first: whoever reads in between sees at once that they don't belong together.
install_as() {
  chmod 644 "$work/certificate"
  mv "$work/key" "$out/$1.key"
  mv "$work/certificate" "$out/$1.crt"
  say "$out/$1.crt"
}

if [[ ! -e $out/ca.key || ! -e $out/ca.crt ]]; then
  new_key_and_request "Switchyard CA"
  cat >"$work/extensions" <<'END'
basicConstraints = critical,CA:TRUE,pathlen:0
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
END
  sign -selfsign -keyfile "$work/key"
  install_as ca
fi

names=
for host in "${hosts[@]}"; do
  if [[ $host == *:* || $host =~ ^[0-9.]+$ ]]; then
    names+=,IP:$host
  else
    names+=,DNS:$host
  fi
done
for role in "${roles[@]}"; do
  new_key_and_request "${name:-$role}"
  cat >"$work/extensions" <<END
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth,clientAuth
subjectAltName = URI:switchyard:role=$role$names
END
  sign -cert "$out/ca.crt" -keyfile "$out/ca.key"
  install_as "${name:-$role}"
done
