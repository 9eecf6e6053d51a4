"""deploy/systemd on a real systemd, which runs in namespaces of its own."""

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import unittest

from tests.faults import cluster as c
from tests.faults.undisturbed import FLAGS

STEPS = 1200
EVERY = 100
UNITS = ["switchyard-coordinator"] + ["switchyard-%s@%s%d" % (kind, kind[0], i)
                                      for kind in ("server", "worker") for i in range(2)]
# The units' environment is empty, and the kernels of OpenBLAS decide about bits.
ENVIRONMENT = ["%s=%s" % item for item in os.environ.items() if item[0].startswith("OPENBLAS_")]
if "ASAN_OPTIONS" in os.environ:
    # Their system calls don't suffice to look for leaks.
    ENVIRONMENT.append("ASAN_OPTIONS=%s:detect_leaks=0" % os.environ["ASAN_OPTIONS"])
CGROUPS = ("/sys/fs/cgroup/systemd", "/sys/fs/cgroup")
# Of systemd-analyze security, in tenths: below it is "OK".
EXPOSURE = 30


def missing():
    """Why there can be no systemd here; empty if it can."""
    if not os.path.exists("/lib/systemd/systemd"):
        return "the package systemd isn't installed"
    if os.geteuid() != 0:
        return "this isn't root, which may make namespaces"
    if not any(os.access(os.path.join(folder, "cgroup.procs"), os.W_OK) for folder in CGROUPS):
        return "there is no cgroup of systemd to write to"
    probe = subprocess.run(["unshare", "--mount", "--pid", "--fork", "--uts", "--ipc", "--cgroup", "true"],
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return "" if probe.returncode == 0 else "no namespaces: " + probe.stdout.strip()


class Systemd:
    """An instance that is gone with this object's close()."""

    def __init__(self, programs, shared):
        self.folder = tempfile.mkdtemp(dir="/tmp", prefix="systemd-")
        parent = next(folder for folder in CGROUPS
                      if os.path.exists(os.path.join(folder, "cgroup.procs")))
        self.cgroup = os.path.join(parent, os.path.basename(self.folder))
        os.mkdir(self.cgroup)
        self.log = os.path.join(self.folder, "log")
        self.pid = None
        with open(self.log, "w") as log:
            self._unshare = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--uts",
                 "--ipc", "--kill-child", "tests/deploy/boot_systemd.sh", self.folder, programs, shared,
                 self.cgroup], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self._await_start()
        except BaseException:
            self.close()
            raise

    def _await_start(self):
        deadline = time.monotonic() + c.PATIENCE
        while True:
            assert self._unshare.poll() is None and time.monotonic() < deadline, c.read(self.log)
            children = c.read("/proc/%d/task/%d/children" % (self._unshare.pid,
                                                             self._unshare.pid)).split()
            if children and c.read("/proc/%s/comm" % children[0]).strip() == "systemd":
                self.pid = int(children[0])
                if self.run("systemctl", "is-active", "basic.target", check=False) == "active":
                    return
            time.sleep(0.2)

    def run(self, *command, check=True):
        """A program inside; what it says."""
        done = subprocess.run(
            ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--uts", "--ipc", "--root", "--wd"]
            + list(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=c.PATIENCE)
        assert not check or done.returncode == 0, "{}: {}\n{}".format(command, done.stdout, self.journal())
        return done.stdout.strip()

    def show(self, unit, name):
        return self.run("systemctl", "show", "--property", name, "--value", unit)

    def journal(self, unit=None):
        if self.pid is None:
            return c.read(self.log)
        return subprocess.run(
            ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--root", "journalctl",
             "--no-pager", "--lines=60"] + (["--unit", unit] if unit else []),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout

    def close(self):
        # All of its pid namespace dies with it.
        if self.pid is not None:
            os.kill(self.pid, 9)
        elif self._unshare.poll() is None:
            self._unshare.kill()
        self._unshare.wait()
        deadline = time.monotonic() + 10
        for folder, _, _ in os.walk(self.cgroup, topdown=False):
            while time.monotonic() < deadline:
                try:
                    os.rmdir(folder)
                    break
                except OSError:
                    time.sleep(0.1)
        shutil.rmtree(self.folder, ignore_errors=True)


@unittest.skipIf(missing(), missing())
class SystemdTest(c.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.job = c.job(steps=STEPS, every_steps=EVERY)
        run = c.Cluster(os.path.join(cls.root, "without"), cls.data, cls.job)
        cls.addClassCleanup(run.close)
        run.start(servers=1, workers=1)
        run.wait_all(c.PATIENCE)
        cls.without = run.result
        cls.programs = os.path.join(cls.root, "programs")
        os.makedirs(cls.programs)
        for program in (c.COORDINATOR, c.EXPERT_SERVER, c.WORKER, c.PREPARE_TEXT, c.MOECTL):
            shutil.copy(os.path.realpath(program), cls.programs)

    def setUp(self):
        self.shared = self.new_folder()
        etc = os.path.join(self.shared, "etc")
        os.makedirs(etc)
        shutil.copytree(self.data, os.path.join(self.shared, "data"))
        address = c.free_address()
        for name, lines in {
            "job.textproto": [self.job],
            "coordinator.flags": ["--job=/etc/switchyard/job.textproto", "--listen=" + address,
                                  "--servers=2", "--workers=2", *FLAGS, "--rejoin_timeout_s=60",
                                  "--checkpoint_dir=/srv/switchyard/checkpoints",
                                  "--result_json=/srv/switchyard/result.json"],
            "coordinator.env": ENVIRONMENT,
            "server.flags": ["--coordinator=" + address, "--listen=127.0.0.1:0", "--threads=1"],
            "server-s0.env": ENVIRONMENT,
            "server-s1.env": ENVIRONMENT + ["SWITCHYARD_FLAGS=--activation_gib=1 --memory_gib=2"],
            "worker.flags": ["--coordinator=" + address, "--data=/srv/switchyard/data"],
            "worker-w0.env": ENVIRONMENT,
            "worker-w1.env": ENVIRONMENT,
        }.items():
            with open(os.path.join(etc, name), "w") as file:
                file.write("\n".join(lines) + "\n")
        self.systemd = Systemd(self.programs, self.shared)
        self.addCleanup(self.systemd.close)

    def await_that(self, condition, what):
        deadline = time.monotonic() + c.PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                self.fail("waited for this: {}\n{}".format(what, self.systemd.journal()))
            time.sleep(0.1)

    def await_status(self, unit, pattern):
        self.await_that(lambda: re.search(pattern, self.systemd.show(unit, "StatusText")),
                        unit + ": " + pattern)

    def await_checkpoint(self):
        folder = os.path.join(self.shared, "checkpoints")
        steps = lambda: [name for name in (os.listdir(folder) if os.path.isdir(folder) else [])
                         if "generation" not in name and name.startswith("step-")]
        before = steps()
        self.await_that(lambda: set(steps()) - set(before), "a checkpoint")

    def start_all(self):
        # Returns when all are ready: have joined.
        self.systemd.run("systemctl", "start", *UNITS)
        for unit in UNITS:
            self.assertEqual(self.systemd.show(unit, "ActiveState"), "active", unit)

    def assert_as_without(self):
        self.await_that(lambda: os.path.exists(os.path.join(self.shared, "result.json")), "the end")
        for unit in UNITS:
            self.await_that(lambda: self.systemd.show(unit, "ActiveState") == "inactive",
                            unit + " ends, and isn't started again")
            self.assertEqual(self.systemd.show(unit, "Result"), "success")
        with open(os.path.join(self.shared, "result.json")) as file:
            result = json.load(file)
        self.assertEqual(result["digest"], self.without["digest"], self.systemd.journal())

    def test_the_units_are_in_order(self):
        names = ["switchyard-coordinator.service", "switchyard-server@s0.service",
                 "switchyard-worker@w0.service"]
        said = self.systemd.run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *names)
        self.assertEqual(said, "")
        for name in names:
            said = self.systemd.run("systemd-analyze", "security", "--no-pager",
                                    "--threshold=%d" % EXPOSURE, name)
            self.assertIn("Overall exposure level", said)

    def test_a_job_whose_members_are_killed_restarted_and_hang(self):
        # A server that hangs is noticed by the coordinator; the watchdog gives its place to another.
        drop_in = "/etc/systemd/system/switchyard-server@s0.service.d"
        self.systemd.run("mkdir", "-p", drop_in)
        self.systemd.run("sh", "-c", "printf '[Service]\\nWatchdogSec=3\\nTimeoutAbortSec=1\\n' >%s/t.conf"
                         % drop_in)
        self.systemd.run("systemctl", "daemon-reload")
        self.start_all()
        self.await_status("switchyard-coordinator", r"^generation \d+, step \d+ of %d$" % STEPS)
        self.await_status("switchyard-server@s0", r"^generation .*; its shards have taken \d+ step")
        self.await_status("switchyard-worker@w0", r"^generation \d+, step \d+")
        user = self.systemd.run("id", "-u", "switchyard")
        for unit in UNITS:
            pid = self.systemd.show(unit, "MainPID")
            self.assertEqual(self.systemd.run("stat", "-c", "%u", "/proc/" + pid), user)

        self.await_checkpoint()
        for unit in ("switchyard-server@s1", "switchyard-worker@w0", "switchyard-coordinator"):
            self.systemd.run("systemctl", "kill", "--signal=KILL", unit)
            self.await_that(lambda: self.systemd.show(unit, "NRestarts") == "1", unit + " is started again")
            self.await_that(lambda: self.systemd.show(unit, "ActiveState") == "active", unit + " is ready")
        self.await_checkpoint()
        self.systemd.run("systemctl", "kill", "--signal=STOP", "switchyard-server@s0")
        self.await_that(lambda: self.systemd.show("switchyard-server@s0", "NRestarts") == "1",
                        "the watchdog has ended s0")
        self.await_checkpoint()
        # On purpose: nobody fails.
        self.systemd.run("systemctl", "restart", "switchyard-coordinator")
        self.assert_as_without()

    def test_stop_and_start(self):
        self.start_all()
        self.await_checkpoint()
        since = time.monotonic()
        self.systemd.run("systemctl", "stop", *UNITS)
        self.assertLess(time.monotonic() - since, c.FAULT, self.systemd.journal())
        for unit in UNITS:
            self.assertEqual(self.systemd.show(unit, "Result"), "success", unit)
        self.start_all()
        self.assert_as_without()


class InstallTest(c.TestCase):
    def test_options(self):
        for arguments, status, words in (
            (["--help"], 0, "Usage: deploy/systemd/install.sh"),
            (["--nonsense"], 2, "unknown option"),
            (["--root"], 2, "needs a value"),
            (["--root", "/nowhere"], 2, "no readable folder"),
            (["--root", self.root, "--programs", self.data], 1, "there is no program coordinator in"),
        ):
            with self.subTest(arguments):
                done = subprocess.run(["deploy/systemd/install.sh"] + arguments, text=True,
                                      stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
                self.assertEqual(done.returncode, status, done.stdout)
                self.assertIn(words, done.stdout)

    def test_flags_that_are_there_stay(self):
        root = self.new_folder()
        os.makedirs(os.path.join(root, "etc", "switchyard"))
        mine = os.path.join(root, "etc", "switchyard", "server.flags")
        with open(mine, "w") as file:
            file.write("--coordinator=mine:1\n")
        subprocess.run(["deploy/systemd/install.sh", "--root", root, "--programs", "."], check=True)
        self.assertEqual(c.read(mine), "--coordinator=mine:1\n")
        # What is installed as an example is understood by the programs.
        for program, flags in (("coordinator", "coordinator.flags"), ("expert_server", "server.flags"),
                               ("worker", "worker.flags")):
            if program == "expert_server":
                shutil.copy("deploy/systemd/server.flags", mine)
            done = subprocess.run(
                [os.path.join(root, "usr/lib/switchyard", program), "--flagfile=" +
                 os.path.join(root, "etc/switchyard", flags), "argument"], text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            self.assertEqual(done.returncode, 2)
            self.assertRegex(done.stdout, "unexpected argument|takes flags only")


if __name__ == "__main__":
    c.main()
