"""A cluster of real processes for a test: starts them, breaks them, and tells how each ended.

Everything has a deadline, and only processes that the test itself started are ever signalled. Paths
of programs are relative to the runfiles' root, where Bazel starts a test.
"""

import ctypes
import glob
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import unittest

COORDINATOR = "server/coordinator/coordinator"
EXPERT_SERVER = "server/expert_server"
WORKER = "worker/worker"
PREPARE_TEXT = "worker/data/prepare_text"
MOECTL = "client/moectl"
TRAIN_IN_PROCESS = "tests/cluster/train_in_process"
MAKE_CERTIFICATES = "deploy/make_certificates.sh"

# What all deadlines are multiplied by, also those that processes get as flags: more than 1 under a
# sanitizer.
DEADLINE_FACTOR = float(os.environ.get("DEADLINE_FACTOR", "1"))

# Seconds. After a fault every process must have ended within FAULT; PATIENCE only bounds what would
# hang.
FAULT = 15 * DEADLINE_FACTOR
PATIENCE = 120 * DEADLINE_FACTOR

JOB = """
name: "small"
seed: 5
model {
  d_model: 16
  embedding_dropout: 0.1
  layers { lstm { hidden: 16 forget_bias: 1 } dropout: 0.1 residual: true }
  layers {
    moe {
      experts: 8 k: 2 hidden: 64 groups: 4 gating: GATING_NOISY_TOP_K
      w_importance: 0.1 w_load: 0.1 sigmoid_output: true
    }
    dropout: 0.1
    residual: true
  }
}
optimizer { adam {} schedule { base_rate: 0.01 inverse_sqrt { warmup_steps: 10 } } }
training { replicas: 4 waves: 2 lanes: 4 unroll: 8 steps: %(steps)d }
checkpointing { every_steps: %(every_steps)d }
"""

ENDLESS = 100000000  # steps
CLONE_NEWNS = 0x20000
# What a sanitizer says first, and some lines of what follows.
SANITIZER = re.compile(r"^.*(?:: runtime error: |(?:Address|Leak)Sanitizer).*(?:\n.*){0,60}", re.M)


def job(steps=ENDLESS, every_steps=0, edits=None):
    """A small job's text, after `edits`: {old: new}."""
    text = JOB % {"steps": steps, "every_steps": every_steps}
    for old, new in (edits or {}).items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def synthetic_text(seed, lines=700):
    rng = random.Random(seed)
    words = [a + b + c for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]
    text = []
    for _ in range(lines):
        topic = rng.randrange(5) * 30
        text.append(" ".join(words[topic + rng.randrange(30)] for _ in range(rng.randrange(5, 12))))
    return "\n".join(text) + "\n"


def prepare_text(folder, seed=1):
    """Prepared text in `folder`, as workers read it."""
    os.makedirs(folder)
    text = os.path.join(folder, "text.txt")
    data = os.path.join(folder, "data")
    with open(text, "w") as file:
        file.write(synthetic_text(seed))
    subprocess.run([PREPARE_TEXT, "--text", text, "--out", data], check=True, timeout=PATIENCE,
                   stdout=subprocess.DEVNULL)
    return data


def free_address():
    """An address for a process that can't choose a port itself; no other test takes it."""
    host = "127.{}.{}.{}".format(*(random.SystemRandom().randrange(1, 255) for _ in range(3)))
    with socket.socket() as probe:
        probe.bind((host, 0))
        return "{}:{}".format(*probe.getsockname())


def make_certificates(folder, *flags):
    """Certificates of all roles in `folder`, or those that the flags say."""
    subprocess.run([MAKE_CERTIFICATES, "--out", folder] + list(flags), check=True,
                   timeout=PATIENCE, stdout=subprocess.DEVNULL)
    return folder


def tls_flags(folder, name, ca=None):
    """The flags of a process with this certificate of the folder."""
    return ["--tls_ca", ca or os.path.join(folder, "ca.crt"), "--tls_cert",
            os.path.join(folder, name + ".crt"), "--tls_key", os.path.join(folder, name + ".key")]


def read(path):
    try:
        # Logs may quote what came over the network.
        with open(path, errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def own_mounts():
    """Gives this process mounts of its own, which end with it; False if that isn't allowed."""
    libc = ctypes.CDLL(None)
    if libc.unshare(CLONE_NEWNS) != 0:
        return False
    return subprocess.run(["mount", "--make-rprivate", "/"]).returncode == 0


class Process:
    """A process with captured output. It dies with the test, however that ends."""

    def __init__(self, name, command, log_folder, log=None, env=None, restore_signals=True):
        self.name = name
        self.stdout_path = os.path.join(log_folder, (log or name) + ".out")
        self.stderr_path = os.path.join(log_folder, (log or name) + ".err")
        with open(self.stdout_path, "a") as out, open(self.stderr_path, "a") as err:
            self._popen = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL"] + [str(word) for word in command],
                stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                env={**os.environ, **(env or {})}, restore_signals=restore_signals)

    @property
    def pid(self):
        return self._popen.pid

    @property
    def status(self):
        """The exit status, -N for a death by signal N, None while it runs."""
        return self._popen.poll()

    @property
    def stdout(self):
        return read(self.stdout_path)

    @property
    def stderr(self):
        return read(self.stderr_path)

    @property
    def last_line(self):
        """What the user sees when the process has ended."""
        return (self.stderr.splitlines() or [""])[-1]

    def send(self, number):
        assert self.status is None, self.report()
        self._popen.send_signal(number)

    def wait(self, seconds=PATIENCE):
        try:
            return self._popen.wait(max(seconds, 0.001))
        except subprocess.TimeoutExpired:
            return None

    def close(self):
        if self.status is None:
            self._popen.kill()
            self._popen.wait()

    def report(self):
        state = "still running" if self.status is None else "status {}".format(self.status)
        lines = self.stdout.splitlines()[-4:] + self.stderr.splitlines()[-6:]
        return "\n".join(["{} (pid {}): {}".format(self.name, self.pid, state)] +
                         ["    " + line for line in lines])


class Cluster:
    """One run of a job in a folder of its own."""

    def __init__(self, folder, data, job_text, checkpoint_dir=None):
        os.makedirs(folder)
        self.folder = folder
        self.data = data
        self.processes = {}
        self._launched = 0
        self.checkpoint_dir = checkpoint_dir or os.path.join(folder, "checkpoints")
        self.job_path = os.path.join(folder, "job.textproto")
        with open(self.job_path, "w") as file:
            file.write(job_text)
        self.result_path = os.path.join(folder, "result.json")
        self.address = None

    # ---- starting

    def start(self, servers=1, workers=1, server_flags=(), worker_flags=(), server_cgroup=None,
              **options):
        """The whole cluster, coordinator first. server_cgroup: of all servers."""
        self.start_coordinator(servers, workers, **options)
        for i in range(servers):
            self.start_server("s%d" % i, flags=server_flags, cgroup=server_cgroup)
        for i in range(workers):
            self.start_worker("w%d" % i, flags=worker_flags)
        return self

    def start_coordinator(self, servers=1, workers=1, listen="127.0.0.1:0", flags=(), wait=True,
                          name="coordinator", **options):
        port_file = os.path.join(self.folder, name + ".port")
        if os.path.exists(port_file):
            os.remove(port_file)
        command = [COORDINATOR, "--job", self.job_path, "--listen", listen, "--servers", servers,
                   "--workers", workers, "--checkpoint_dir", self.checkpoint_dir, "--state_dir",
                   os.path.join(self.folder, "state"), "--port_file", port_file, "--result_json",
                   self.result_path]
        process = self._launch(name, command + list(flags), **options)
        if wait:
            self.await_that(lambda: os.path.exists(port_file), "the coordinator listens")
            self.address = read(port_file).strip()
        return process

    def start_server(self, name, flags=(), cgroup=None, **options):
        command = [EXPERT_SERVER, "--name", name, "--coordinator", self.address, "--threads",
                   1] + list(flags)
        return self._launch(name, cgroup.command(command) if cgroup else command, **options)

    def start_worker(self, name, flags=(), data=None, **options):
        return self._launch(name, [WORKER, "--name", name, "--coordinator", self.address, "--data",
                                   data or self.data] + list(flags), **options)

    def _launch(self, name, command, host=None, **options):
        """host: a network.Host."""
        assert name not in self.processes, name
        if host:
            command = host.command(command)
        # Of several processes of one name each keeps its output.
        self._launched += 1
        log = name if "coordinator" in name else "{}.{}".format(name, self._launched)
        process = self.processes[name] = Process(name, command, self.folder, log, **options)
        return process

    def __getitem__(self, name):
        return self.processes[name]

    def kill(self, name):
        """Kills a process and forgets it, so that another may take its name."""
        process = self.processes.pop(name)
        process.send(signal.SIGKILL)
        process.wait()
        return process

    # ---- waiting

    def await_that(self, condition, what):
        """Waits for a condition while every process lives."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            dead = [p for p in self.processes.values() if p.status is not None]
            if dead or time.monotonic() > deadline:
                raise AssertionError("waited for this: {}\n{}".format(what, self.report()))
            time.sleep(0.02)

    def await_line(self, pattern):
        """Waits for a line of the coordinator's progress."""
        self.await_that(lambda: re.search(pattern, self["coordinator"].stdout, re.M),
                        "the progress shows " + pattern)

    def await_training(self):
        self.await_line(r"^step [0-9]+/")

    def wait_all(self, seconds):
        deadline = time.monotonic() + seconds
        for process in self.processes.values():
            process.wait(deadline - time.monotonic())

    @property
    def result(self):
        with open(self.result_path) as file:
            return json.load(file)

    def checkpoints(self):
        """The steps of the committed checkpoints."""
        if not os.path.isdir(self.checkpoint_dir):
            return []
        return sorted(int(name[5:]) for name in os.listdir(self.checkpoint_dir)
                      if re.fullmatch("step-[0-9]+", name) and os.path.exists(
                          os.path.join(self.checkpoint_dir, name, "manifest.json")))

    def report(self):
        return "\n".join(p.report() for p in self.processes.values())

    def close(self):
        for process in self.processes.values():
            process.close()


class TestCase(unittest.TestCase):
    """Clusters that end with their test, and what is asserted of them."""

    @classmethod
    def setUpClass(cls):
        cls.root = tempfile.mkdtemp(dir=os.environ.get("TEST_TMPDIR"))
        cls.addClassCleanup(shutil.rmtree, cls.root, ignore_errors=True)
        cls.data = prepare_text(os.path.join(cls.root, "text"))
        cls._folders = 0

    def new_folder(self):
        type(self)._folders += 1
        return os.path.join(self.root, "run%d" % self._folders)

    def new_cluster(self, job_text=None, **options):
        cluster = Cluster(self.new_folder(), self.data, job_text or job(), **options)
        self.addCleanup(self.assert_sane, cluster.folder)
        self.addCleanup(cluster.close)
        return cluster

    def train(self, job_text, servers=1, workers=1, **options):
        """A run to its end; its result."""
        cluster = self.new_cluster(job_text).start(servers, workers, **options)
        return self.assert_finished(cluster)

    def run_program(self, command, env=None):
        """A program that ends by itself."""
        folder = self.new_folder()
        os.makedirs(folder)
        process = Process(os.path.basename(command[0]), command, folder, env=env)
        self.addCleanup(self.assert_sane, folder)
        self.addCleanup(process.close)
        self.assertIsNotNone(process.wait(PATIENCE), process.report())
        return process

    def assert_sane(self, folder):
        """No sanitizer stopped a process with its log there, also one that was to fail or be killed."""
        for path in glob.glob(os.path.join(folder, "*.err")):
            report = SANITIZER.search(read(path))
            self.assertIsNone(report, "%s: %s" % (path, report and report[0]))

    def assert_finished(self, cluster):
        cluster.wait_all(PATIENCE)
        for process in cluster.processes.values():
            self.assertEqual(process.status, 0, cluster.report())
        self.assertEqual(cluster.result["phase"], "FINISHED")
        self.assertEqual(cluster.result["failure"], "")
        return cluster.result

    def assert_failed(self, cluster, since, cause, killed=(), causes=None, statuses=None):
        """Every process ended by itself within FAULT of `since`, with status 1 (or the one that
        `statuses` has for its name), and its last line matches `cause` (or the one in `causes`).
        `killed` names those that the test killed."""
        cluster.wait_all(FAULT - (time.monotonic() - since))
        report = "\n" + cluster.report()
        for name, process in cluster.processes.items():
            if name in killed:
                self.assertEqual(process.status, -signal.SIGKILL, report)
                continue
            self.assertIsNotNone(process.status, "{} hangs{}".format(name, report))
            self.assertEqual(process.status, (statuses or {}).get(name, 1),
                             "{}'s status{}".format(name, report))
            self.assertRegex(process.last_line, (causes or {}).get(name, cause),
                             "{} doesn't say it{}".format(name, report))


class _XmlResult(unittest.TextTestResult):
    def __init__(self, *args):
        super().__init__(*args)
        self.cases = []
        self._kind = None
        self._message = ""

    def startTest(self, test):
        super().startTest(test)
        self._kind, self._message = None, ""
        self._start = time.monotonic()

    def stopTest(self, test):
        super().stopTest(test)
        self.cases.append((test.id().split(".", 1)[-1], time.monotonic() - self._start, self._kind,
                           self._message))

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self._kind, self._message = "failure", str(err[1])

    def addError(self, test, err):
        super().addError(test, err)
        self._kind, self._message = "failure", str(err[1])
        if not isinstance(test, unittest.TestCase):  # setUpClass and the like
            self.cases.append((str(test), 0, self._kind, self._message))

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._kind, self._message = "failure", str(err[1])

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self._kind, self._message = "skipped", reason


def main():
    """unittest.main() that also tells Bazel of the single cases."""
    from xml.sax.saxutils import quoteattr

    program = unittest.main(
        exit=False,
        testRunner=unittest.TextTestRunner(resultclass=_XmlResult, verbosity=2))
    path = os.environ.get("XML_OUTPUT_FILE")
    if path:
        # XML can't hold most control characters.
        clean = lambda text: quoteattr(re.sub(r"[^\t\n\x20-\ud7ff]", "?", text))
        with open(path, "w") as file:
            file.write('<testsuites>\n<testsuite name="faults">\n')
            for name, seconds, kind, message in program.result.cases:
                file.write('<testcase name={} time="{:.3f}">'.format(clean(name), seconds))
                if kind:
                    file.write("<{} message={}/>".format(kind, clean(message)))
                file.write("</testcase>\n")
            file.write("</testsuite>\n</testsuites>\n")
    raise SystemExit(not program.result.wasSuccessful())
