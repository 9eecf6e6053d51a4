"""deploy/run_local.sh: wrong options, taken folders, lost processes, Ctrl-C and --resume.

The script runs in a tree of its own with this build's programs: it neither installs nor builds.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time

from tests.faults import cluster as c

SOURCES = ["BUILD", "WORKSPACE", ".bazelrc", "proto", "common", "server", "client", "worker",
           "third_party"]


class RunLocalTest(c.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.repo = os.path.join(cls.root, "repo")
        for name in SOURCES:
            os.makedirs(os.path.join(cls.repo, name))
        deploy = os.path.join(cls.repo, "deploy")
        shutil.copytree("deploy", deploy)
        cls.script = os.path.join(deploy, "run_local.sh")
        install = os.path.join(deploy, "install.sh")
        with open(install, "w") as file:
            file.write("#!/bin/sh\n")
        os.chmod(install, 0o755)
        for program in (c.COORDINATOR, c.EXPERT_SERVER, c.WORKER, c.PREPARE_TEXT):
            link = os.path.join(cls.repo, "bazel-bin", program)
            os.makedirs(os.path.dirname(link), exist_ok=True)
            os.symlink(os.path.abspath(program), link)
        # As the script stamps what it has built.
        with open(os.path.join(cls.repo, "bazel-bin", "run_local.stamp"), "wb") as stamp:
            subprocess.run(["bash", "-c", "bin=$1 && source $2 && fingerprint_of_programs", "bash",
                            os.path.join(cls.repo, "bazel-bin"),
                            os.path.join(deploy, "lib", "build.sh")], check=True, stdout=stamp)
        cls.text = os.path.join(cls.root, "text", "text.txt")

    def setUp(self):
        self.out = self.new_folder()
        self.runs = 0

    def start(self, *flags, job_text=None):
        self.runs += 1
        job_path = "%s-%d.textproto" % (self.out, self.runs)
        if job_text:
            with open(job_path, "w") as file:
                file.write(job_text)
            flags = ("--job", job_path) + flags
        logs = self.new_folder()
        os.makedirs(logs)
        process = c.Process("run_local", [self.script, "--out", self.out] + list(flags), logs)

        # If a test fails in the middle: the script stops what it has started.
        def stop():
            if process.status is None:
                process.send(signal.SIGTERM)
                process.wait(c.FAULT)
            process.close()

        self.addCleanup(stop)
        return process

    def await_line(self, process, pattern):
        deadline = time.monotonic() + c.PATIENCE
        while not re.search(pattern, process.stdout, re.M):
            self.assertIsNone(process.status, process.report())
            self.assertLess(time.monotonic(), deadline, process.report())
            time.sleep(0.05)

    def members(self):
        """Processes of this run that live: {pid: command line}."""
        found = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open("/proc/%s/cmdline" % pid, "rb") as file:
                    command = file.read().decode(errors="replace").split("\0")
                with open("/proc/%s/stat" % pid) as file:
                    state = file.read().rsplit(")", 1)[1].split()[0]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if command[0].startswith(self.repo + "/") and state != "Z":
                found[int(pid)] = command
        return found

    def member(self, name):
        for pid, command in self.members().items():
            if "--name" in command and command[command.index("--name") + 1] == name:
                return pid
        self.fail("%s doesn't run" % name)

    def assert_all_gone(self):
        self.assertEqual(self.members(), {})

    def assert_ends(self, process, status, pattern, within=c.PATIENCE):
        self.assertEqual(process.wait(within), status, process.report())
        self.assertRegex(process.stdout + process.stderr, pattern)
        self.assert_all_gone()

    # ---- options

    def test_wrong_options(self):
        for flags, cause in [
            (["--nonsense"], "unknown option: --nonsense"),
            (["--servers", "0"], "--servers is '0'; it must be a whole number of at least 1"),
            (["--workers=many"], "--workers is 'many'"),
            (["--steps"], "--steps needs a value"),
            (["--disk_gib", "0.5"], "--disk_gib is '0.5'; it must be a whole number of at least 1"),
            (["--disk_gib"], "--disk_gib needs a value"),
            (["--job", "/nowhere.txt"], "--job: there is no readable file '/nowhere.txt'"),
            (["--text", "/nowhere.txt"], "--text: there is no readable file"),
            (["--data", "/nowhere"], "--data: there is no readable folder"),
            (["--text", self.text, "--data", self.data], "--text and --data exclude each other"),
        ]:
            with self.subTest(flags=flags):
                process = self.start(*flags)
                self.assertEqual(process.wait(c.FAULT), 2, process.report())
                self.assertRegex(process.last_line, "^run_local.sh: " + cause)
        self.assertFalse(os.path.exists(self.out))

    # ---- bad jobs

    def test_bad_job(self):
        process = self.start("--data", self.data, job_text=c.job(edits={"k: 2": "k: 9"}))
        self.assert_ends(process, 1, "the coordinator did not start", within=2 * c.FAULT)
        self.assertRegex(process.stderr, r"model\.layers\[1\]\.moe\.k is 9: must be between 1 and")

    def test_more_workers_than_replicas(self):
        process = self.start("--data", self.data, "--workers", "5", job_text=c.job())
        self.assert_ends(process, 1, "--workers is 5, but the job's training.replicas is 4",
                         within=2 * c.FAULT)

    def test_folder_without_text(self):
        process = self.start("--data", self.root, job_text=c.job())
        self.assert_ends(process, 1, "holds no prepared text", within=2 * c.FAULT)

    # ---- the folder

    def test_finished_run_keeps_its_folder(self):
        process = self.start("--text", self.text, job_text=c.job(steps=5))
        self.assert_ends(process, 0, "parameter digest")
        with open(os.path.join(self.out, "result.json")) as file:
            self.assertEqual(json.load(file)["phase"], "FINISHED")
        again = self.start("--text", self.text, job_text=c.job(steps=5))
        self.assert_ends(again, 1, "already holds a run", within=c.FAULT)
        # With more steps it goes on.
        more = self.start("--resume", "--servers", "1", "--steps", "8")
        self.assert_ends(more, 0, "step 8/8")

    def test_folder_in_use(self):
        first = self.start("--data", self.data, job_text=c.job())
        self.await_line(first, r"^step ")
        second = self.start("--data", self.data, job_text=c.job())
        self.assertEqual(second.wait(c.FAULT), 1, second.report())
        self.assertRegex(second.last_line, "another run is using " + self.out)
        self.assertIsNone(first.status, first.report())

    def test_folder_cannot_be_made(self):
        with open(self.out, "w"):
            pass
        process = self.start("--data", self.data, job_text=c.job())
        self.assert_ends(process, 1, "cannot create the folder " + self.out, within=c.FAULT)

    def test_nothing_to_resume(self):
        process = self.start("--resume", "--data", self.data)
        self.assert_ends(process, 1, "there is no checkpoint in %s to go on from" % self.out,
                         within=c.FAULT)

    # ---- faults

    def test_killed_members(self):
        job_text = c.job(steps=3000, every_steps=50)
        undisturbed = self.train(job_text)
        process = self.start("--data", self.data, job_text=job_text)
        for round, name in enumerate(["w1", "s0"]):
            self.await_line(process, r"^checkpoint .*step-00000%d00 " % (round + 1))
            os.kill(self.member(name), signal.SIGKILL)
        self.assert_ends(process, 0, "parameter digest *" + undisturbed["digest"])
        for who in ("worker w1", "server s0"):
            self.assertIn(who + " was killed by SIGKILL and is started again", process.stderr)

    def test_member_that_is_killed_whenever_it_starts(self):
        process = self.start("--data", self.data, job_text=c.job())
        self.await_line(process, r"^step ")
        deadline = time.monotonic() + c.PATIENCE
        while process.status is None and time.monotonic() < deadline:
            for pid, command in self.members().items():
                if "s0" in command:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        self.assert_ends(process, 1, "the job failed\n  server s0 was killed by SIGKILL")
        self.assertGreaterEqual(process.stderr.count("is started again"), 5)

    def test_killed_coordinator(self):
        process = self.start("--data", self.data, job_text=c.job())
        self.await_line(process, r"^step ")
        for pid, command in self.members().items():
            if command[0].endswith("/coordinator"):
                os.kill(pid, signal.SIGKILL)
        self.assert_ends(process, 1, "the coordinator was killed by SIGKILL", within=c.FAULT)

    def test_stopped_and_resumed(self):
        job_text = c.job(steps=200, every_steps=10)
        process = self.start("--data", self.data, job_text=job_text)
        self.await_line(process, r"^checkpoint ")
        process.send(signal.SIGINT)
        self.assert_ends(process, 130, "go on from it: .*--resume", within=c.FAULT)
        again = self.start("--resume", "--servers", "1", "--workers", "3")
        self.assert_ends(again, 0, "parameter digest")
        with open(os.path.join(self.out, "result.json")) as file:
            resumed = json.load(file)
        undisturbed = self.train(job_text, servers=2, workers=2)
        self.assertEqual(resumed["digest"], undisturbed["digest"])

    def test_experts_on_disk(self):
        job_text = c.job(steps=200, every_steps=10)
        process = self.start("--data", self.data, "--disk_gib", "1", job_text=job_text)
        self.await_line(process, r"^checkpoint ")
        self.assert_keeps_experts_on_disk("1")
        process.send(signal.SIGINT)
        self.assert_ends(process, 130, "go on from it: .*--resume", within=c.FAULT)
        # Without the option it stays as it was.
        again = self.start("--resume", "--steps", "100000")
        self.await_line(again, r"^step ")
        self.assertRegex(again.stdout, "Experts are on disk as before, at most 1 GiB a server")
        self.assert_keeps_experts_on_disk("1")
        again.send(signal.SIGINT)
        self.assert_ends(again, 130, "Stopping", within=c.FAULT)
        more = self.start("--resume", "--disk_gib", "2", "--steps", "100000")
        self.await_line(more, r"^step ")
        self.assert_keeps_experts_on_disk("2")
        more.send(signal.SIGINT)
        self.assert_ends(more, 130, "Stopping", within=c.FAULT)

    def assert_keeps_experts_on_disk(self, gib):
        commands = self.members()
        server = commands[self.member("s0")]
        self.assertEqual(server[server.index("--disk_dir") + 1], os.path.join(self.out, "disk"))
        self.assertEqual(server[server.index("--disk_gib") + 1], gib)
        self.assertEqual(server[server.index("--rendezvous_timeout") + 1], "10m")
        worker = commands[self.member("w0")]
        self.assertEqual(worker[worker.index("--step_timeout") + 1], "10m")

    def test_stopped_by_sigterm(self):
        process = self.start("--data", self.data, job_text=c.job())
        self.await_line(process, r"^step ")
        process.send(signal.SIGTERM)
        self.assert_ends(process, 143, r"Stopping \(signal TERM\)", within=c.FAULT)


if __name__ == "__main__":
    c.main()
