#!/bin/bash
# systemd_test.py: becomes an instance of systemd, in namespaces of its own, on a copy of this machine's
# root that is written to memory. Begins in new mount, pid, uts and ipc namespaces.
#
#   boot_systemd.sh FOLDER PROGRAMS SHARED CGROUP   FOLDER/root becomes the root; SHARED its /srv/switchyard
set -euo pipefail

readonly folder=$1 programs=$2 shared=$3 cgroup=$4
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
readonly root=$folder/root install=deploy/systemd/install.sh

if [[ -z ${IN_CGROUP:-} ]]; then
  # systemd takes the cgroup that it begins in for the root of all.
  echo $$ >"$cgroup/cgroup.procs"
  exec env IN_CGROUP=1 unshare --cgroup "$0" "$@"
fi

mount --make-rprivate /
mkdir -p "$folder/upper" "$root"
mount -t tmpfs tmpfs "$folder/upper"
mkdir "$folder/upper/files" "$folder/upper/work"
mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/upper/files,workdir=$folder/upper/work" "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
if [[ -e /sys/fs/cgroup/cgroup.procs ]]; then
  mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
else
  mount -t tmpfs tmpfs "$root/sys/fs/cgroup"
  mkdir "$root/sys/fs/cgroup/systemd"
  mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
fi
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs tmpfs "$root/dev"
for device in null zero full random urandom tty; do
  touch "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/shm" "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
mkdir -p "$root/srv/switchyard"
mount --bind "$shared" "$root/srv/switchyard"

"$install" --programs "$programs" --root "$root"
cp -f "$shared"/etc/* "$root/etc/switchyard/"
# Nothing of this machine but the journal.
for unit in "$root"/{lib,etc}/systemd/system/{sysinit,local-fs,basic,sockets,timers,multi-user}.target.wants/*; do
  case "${unit##*/}" in
    *journald*) ;;
    *) ln -sf /dev/null "$root/etc/systemd/system/${unit##*/}" ;;
  esac
done
for unit in network-online.target remote-fs.target; do
  ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
cd "$root"
mkdir run/old
pivot_root . run/old
umount --lazy run/old
systemd-sysusers switchyard.conf
chown -R switchyard: /srv/switchyard
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
  /lib/systemd/systemd --system --unit=basic.target --log-target=journal --show-status=0
