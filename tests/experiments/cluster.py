"""Runs of the programs below bazel-bin, as processes that a script can watch."""
import os
import subprocess
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROGRAMS = os.path.join(ROOT, "bazel-bin")


class Cluster:
    """The processes of a run on this machine. Used with `with`: none of them outlives it."""

    def __init__(self, folder):
        self.folder = folder
        self.processes = {}  # by pid
        self.names = {}

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        for pid, process in self.processes.items():
            if pid in self.names:
                process.kill()

    def start(self, name, program, *flags, cgroup=None):
        with open(os.path.join(self.folder, name.replace("/", "-") + ".log"), "w") as log:
            # It ends with this process, too.
            command = [os.path.join(PROGRAMS, program), *flags]
            if cgroup:
                command = cgroup.command(command)
            process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command], stdout=log,
                                       stderr=log)
        self.processes[process.pid] = process
        self.names[process.pid] = name

    def wait(self):
        """Largest resident bytes of each process, by name. Ends with the first that fails: the
        others may wait for it without end."""
        used = {}
        while self.names:
            pid, status, usage = os.wait4(-1, 0)
            name = self.names.pop(pid)
            used[name] = usage.ru_maxrss * 1024
            if status != 0:
                raise SystemExit("%s failed; logs are in %s" % (name, self.folder))
        return used

    def start_all(self, job, data, servers, workers, coordinator_flags=(), server_flags=(),
                  worker_flags=(), server_cgroups=()):
        """A coordinator and its members, the servers with one thread each. server_cgroups: of each
        server, or empty."""
        port_file = os.path.join(self.folder, "address")
        if os.path.exists(port_file):
            os.remove(port_file)
        self.start("coordinator", "server/coordinator/coordinator", "--job", job, "--port_file",
                   port_file, "--listen", "127.0.0.1:0", "--state_dir",
                   os.path.join(self.folder, "state"), "--checkpoint_dir",
                   os.path.join(self.folder, "checkpoints"), "--servers", str(servers), "--workers",
                   str(workers), *coordinator_flags)
        deadline = time.monotonic() + 20
        while not os.path.exists(port_file):
            if time.monotonic() > deadline:
                raise SystemExit("the coordinator did not start; its log is in " + self.folder)
            time.sleep(0.05)
        with open(port_file, encoding="utf-8") as file:
            address = file.read().strip()
        for i in range(servers):
            self.start("server/s%d" % i, "server/expert_server", "--name", "s%d" % i, "--threads",
                       "1", "--coordinator", address, *server_flags,
                       cgroup=server_cgroups[i] if server_cgroups else None)
        for i in range(workers):
            self.start("worker/w%d" % i, "worker/worker", "--name", "w%d" % i, "--data", data,
                       "--coordinator", address, *worker_flags)
