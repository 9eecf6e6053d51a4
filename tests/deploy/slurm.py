"""A Slurm of its own for a test: one slurmctld and several slurmd on this host, with a munged.

Only processes that the test itself started are ever signalled.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time

DAEMONS = ("slurmctld", "slurmd", "munged")
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
# Seconds, for what would hang.
PATIENCE = 120

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmdPidFile={folder}/%n.pid
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
SlurmdParameters=config_overrides
PluginDir=/usr/lib/x86_64-linux-gnu/slurm-wlm
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdTimeout=6
KillWait={kill_wait}
SchedulerParameters=batch_sched_delay=0
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=8
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing():
    """Why there can be no Slurm here; empty if it can."""
    absent = [name for name in DAEMONS + ("sbatch",) if not shutil.which(name, path=PATH)]
    if absent:
        return "{} not installed (deploy/packages.txt, group test)".format(", ".join(absent))
    if not os.path.ismount("/sys/fs/cgroup"):
        return "nothing is mounted at /sys/fs/cgroup, and slurmd wants cgroups"
    return ""


def _free_ports(n):
    """The first of n ports in a row that nobody listens on."""
    for first in range(20000 + os.getpid() % 10000, 32000, n):
        try:
            for port in range(first, first + n):
                with socket.socket() as probe:
                    probe.bind(("", port))
            return first
        except OSError:
            continue
    raise AssertionError("no free ports")


class Slurm:
    KILL_WAIT = 15

    def __init__(self, nodes=4):
        # The path of munged's socket must be short.
        self.folder = tempfile.mkdtemp(dir="/tmp", prefix="slurm-")
        os.chmod(self.folder, 0o755)
        self.nodes = nodes
        self.daemons = {}
        self.env = {**os.environ, "PATH": PATH, "SLURM_CONF": os.path.join(self.folder, "slurm.conf")}
        for name in [name for name in self.env if name.startswith(("SLURM_", "SBATCH_"))]:
            if name != "SLURM_CONF":
                del self.env[name]
        port = _free_ports(nodes + 1)
        with open(self.env["SLURM_CONF"], "w") as file:
            file.write(CONF.format(host=socket.gethostname(), port=port, folder=self.folder,
                                   user=subprocess.check_output(["id", "-un"], text=True).strip(),
                                   nodes=nodes, first=port + 1, last=port + nodes,
                                   kill_wait=self.KILL_WAIT))
        for name in ("munge", "state"):
            os.mkdir(os.path.join(self.folder, name), 0o711)
        try:
            self._start_all()
        except BaseException:
            self.close()
            raise

    def _start_all(self):
        munge = os.path.join(self.folder, "munge")
        key = os.path.join(munge, "key")
        with open(os.open(key, os.O_CREAT | os.O_WRONLY, 0o600), "wb") as file:
            file.write(os.urandom(1024))
        self._start("munged", ["--foreground", "--key-file", key] + [
            "--%s-file=%s" % (name, os.path.join(munge, name)) for name in ("pid", "log", "seed")
        ] + ["--socket", os.path.join(munge, "socket")])
        self._await(lambda: os.path.exists(os.path.join(munge, "socket")), "munged listens")
        self._start("slurmctld", ["-D", "-f", self.env["SLURM_CONF"]])
        for i in range(self.nodes):
            self.start_node("n%d" % (i + 1))
        self._await(lambda: self._idle() == self.nodes, "all nodes are idle")

    def _start(self, name, arguments):
        program = "slurmd" if re.match(r"n\d+$", name) else name
        with open(os.path.join(self.folder, name + ".out"), "a") as out:
            self.daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", shutil.which(program, path=PATH)] + arguments,
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self.env)

    def start_node(self, name):
        self._start(name, ["-D", "-N", name, "-f", self.env["SLURM_CONF"]])

    def _idle(self):
        shown = self.run("sinfo", "-h", "-N", "-o", "%N %T", check=False)
        return len(re.findall(r"^n\d+ idle$", shown, re.M))

    def _await(self, condition, what):
        deadline = time.monotonic() + PATIENCE
        while not condition():
            for name, daemon in self.daemons.items():
                assert daemon.poll() is None, "{} ended\n{}".format(name, self.logs())
            assert time.monotonic() < deadline, "waited for this: {}\n{}".format(what, self.logs())
            time.sleep(0.2)

    def run(self, *command, check=True):
        """Its output."""
        done = subprocess.run(list(command), env=self.env, stdin=subprocess.DEVNULL, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE)
        assert not check or done.returncode == 0, "{}: {}".format(command, done.stdout)
        return done.stdout

    def submit(self, *arguments):
        """The job's number."""
        return self.run("sbatch", "--parsable", *arguments).strip().split("\n")[-1]

    def job(self, number):
        """JobState, ExitCode and so on."""
        shown = self.run("scontrol", "show", "job", number)
        return dict(re.findall(r"(\w+)=(\S*)", shown))

    def steps(self, number):
        """Steps that run: name -> (step, node)."""
        shown = self.run("squeue", "-h", "-s", "-j", number, "-o", "%j %i %N")
        return {line.split()[0]: tuple(line.split()[1:3]) for line in shown.splitlines()
                if len(line.split()) == 3}

    def processes(self, node=None):
        """Of jobs, on one node or on all: {pid: (command, parent)}."""
        found = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open("/proc/%s/environ" % pid, "rb") as file:
                    env = file.read().split(b"\0")
                with open("/proc/%s/cmdline" % pid, "rb") as file:
                    command = file.read().decode(errors="replace").split("\0")
                with open("/proc/%s/stat" % pid) as file:
                    state, parent = file.read().rsplit(")", 1)[1].split()[:2]
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            ours = ("SLURM_CONF=" + self.env["SLURM_CONF"]).encode() in env
            names = [e[len(b"SLURMD_NODENAME="):].decode() for e in env
                     if e.startswith(b"SLURMD_NODENAME=")]
            if ours and names and node in (None, names[-1]) and state != "Z":
                found[int(pid)] = (command, int(parent))
        return found

    def lose_node(self, name):
        """As if its power had gone: slurmd, what watches its steps, and its processes."""
        daemon = self.daemons.pop(name)
        daemon.kill()
        daemon.wait()
        pids = set()
        for pid, (_, parent) in self.processes(name).items():
            pids.add(pid)
            with open("/proc/%d/cmdline" % parent, "rb") as file:
                if file.read().startswith(b"slurmstepd"):
                    pids.add(parent)
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def logs(self):
        text = []
        for name in sorted(os.listdir(self.folder)):
            if name.endswith((".log", ".out")):
                with open(os.path.join(self.folder, name), errors="replace") as file:
                    text.append("{}:\n{}".format(name, "".join(file.readlines()[-8:])))
        return "\n".join(text)

    def close(self):
        if "slurmctld" in self.daemons and self.daemons["slurmctld"].poll() is None:
            self.run("scancel", "--user=" + str(os.getuid()), check=False)
            deadline = time.monotonic() + self.KILL_WAIT + 5
            while self.processes() and time.monotonic() < deadline:
                time.sleep(0.2)
        for daemon in self.daemons.values():
            daemon.terminate()
        for daemon in self.daemons.values():
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        shutil.rmtree(self.folder, ignore_errors=True)
