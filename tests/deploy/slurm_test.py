"""deploy/slurm/train.sbatch on a real Slurm: slurmctld and four slurmd on this host."""

import json
import os
import re
import subprocess
import time
import unittest

from tests.deploy import slurm
from tests.faults import cluster as c
from tests.faults.undisturbed import FLAGS

STEPS = 800
EVERY = 100
SCRIPT = os.path.abspath("deploy/slurm/train.sbatch")
# Seconds from scancel to the end of the last process.
CANCEL = slurm.Slurm.KILL_WAIT


@unittest.skipIf(slurm.missing(), slurm.missing())
class SlurmTest(c.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.slurm = slurm.Slurm()
        cls.addClassCleanup(cls.slurm.close)
        # Slurm's daemons and the steps see the same folders as this test.
        cls.text = os.path.join(cls.root, "genesis.txt")
        verses = subprocess.run(
            ["diatheke", "-b", "engKJV2006eb", "-f", "plain", "-k", "Gen 1:1-20:18"], check=True,
            stdout=subprocess.PIPE, timeout=c.PATIENCE).stdout
        with open(cls.text, "wb") as file:
            file.write(verses)
        cls.kjv = os.path.join(cls.root, "kjv")
        subprocess.run([c.PREPARE_TEXT, "--text", cls.text, "--out", cls.kjv], check=True,
                       stdout=subprocess.DEVNULL, timeout=c.PATIENCE)
        cls.job = c.job(steps=STEPS, every_steps=EVERY)
        run = c.Cluster(os.path.join(cls.root, "without"), cls.kjv, cls.job)
        cls.addClassCleanup(run.close)
        run.start(servers=1, workers=1)
        run.wait_all(c.PATIENCE)
        cls.without = run.result
        assert cls.without["phase"] == "FINISHED", run.report()
        cls.programs = os.path.join(cls.root, "programs")
        os.makedirs(cls.programs)
        for program in (c.COORDINATOR, c.EXPERT_SERVER, c.WORKER, c.PREPARE_TEXT, c.MOECTL):
            os.symlink(os.path.abspath(program),
                       os.path.join(cls.programs, os.path.basename(program)))

    def setUp(self):
        self.out = self.new_folder()
        os.makedirs(self.out)
        self.number = None
        for i in range(self.slurm.nodes):
            if "n%d" % (i + 1) not in self.slurm.daemons:
                self.slurm.start_node("n%d" % (i + 1))
        self.slurm._await(lambda: self.slurm._idle() == self.slurm.nodes, "all nodes are idle")

    def submit(self, *options, job_text=None, sbatch=(), data=None, network=("--insecure",)):
        job = os.path.join(self.out, "job.textproto")
        with open(job, "w") as file:
            file.write(job_text or self.job)
        flags = os.path.join(self.out, "flags")
        with open(flags, "w") as file:
            file.write("".join("coordinator %s\n" % flag for flag in FLAGS + ["--rejoin_timeout_s=60"]))
        self.output = os.path.join(self.out, "output")
        self.number = self.slurm.submit(
            "--nodes=4", "--ntasks=5", "--output", self.output, *sbatch, SCRIPT, "--job", job,
            "--out", self.out, "--programs", self.programs, "--host", "echo 127.0.0.1", "--flags",
            flags, *(data or ["--data", self.kjv]), *network, *options)
        self.addCleanup(self.slurm.run, "scancel", self.number, check=False)

    def report(self):
        logs = os.path.join(self.out, "logs")
        text = ["job {}: {}".format(self.number, self.slurm.job(self.number)["JobState"]),
                c.read(self.output)[-3000:]]
        for name in sorted(os.listdir(logs)) if os.path.isdir(logs) else []:
            text.append("{}:\n{}".format(name, c.read(os.path.join(logs, name))[-1500:]))
        return "\n".join(text + [self.slurm.logs()])

    def await_that(self, condition, what):
        deadline = time.monotonic() + c.PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                self.fail("waited for this: {}\n{}".format(what, self.report()))
            time.sleep(0.1)

    def await_line(self, pattern, after=0):
        self.await_that(lambda: re.search(pattern, c.read(self.output)[after:], re.M), pattern)

    def await_end(self):
        """The job's exit status."""
        self.await_that(lambda: self.slurm.job(self.number)["JobState"] not in
                        ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED"),
                        "the job ends")
        return int(self.slurm.job(self.number)["ExitCode"].split(":")[0])

    def assert_as_without(self):
        self.assertEqual(self.await_end(), 0, self.report())
        self.assertEqual(self.slurm.job(self.number)["JobState"], "COMPLETED")
        with open(os.path.join(self.out, "result.json")) as file:
            result = json.load(file)
        self.assertEqual(result["digest"], self.without["digest"], self.report())
        self.assertEqual(result["test_perplexity"], self.without["test_perplexity"])
        self.assertEqual(self.slurm.processes(), {})

    def test_from_the_text_to_the_result(self):
        certificates = c.make_certificates(os.path.join(self.out, "certificates"))
        self.submit(data=["--text", self.text], network=["--tls", certificates])
        self.await_line("^step [0-9]+/%d " % STEPS)
        members = self.slurm.steps(self.number)
        for name in ("server-s0", "server-s1", "worker-w0", "worker-w1"):
            self.assertIn(name, members)
        self.assertGreaterEqual(len({node for _, node in members.values()}), 3, members)
        self.assert_as_without()
        self.assertIn("parameter digest", c.read(self.output))
        self.assertIn("joined", c.read(os.path.join(self.out, "logs", "coordinator.log")))

    def test_lost_members_and_a_lost_node(self):
        self.submit()
        for victim in ("server-s1", "worker-w0"):
            self.await_line("^checkpoint ", after=len(c.read(self.output)))
            step, _ = self.slurm.steps(self.number)[victim]
            before = len(c.read(self.output))
            self.slurm.run("scancel", "--signal=KILL", step, check=False)
            self.await_line(victim + " ended with status 137 and is started again", after=before)
        self.await_line("^checkpoint ", after=len(c.read(self.output)))
        first = self.slurm.job(self.number)["BatchHost"]
        nodes = {node: name for name, (_, node) in self.slurm.steps(self.number).items()}
        node = sorted(node for node in nodes if node != first)[0]
        self.slurm.lose_node(node)
        self.assert_as_without()
        self.assertIn("recovering: ", c.read(self.output))
        self.assertIn(nodes[node] + " ended with status ", c.read(self.output))

    def test_the_coordinator_is_killed(self):
        self.submit()
        self.await_line("^checkpoint ")
        found = [pid for pid, (command, _) in self.slurm.processes().items()
                 if command[0].endswith("/coordinator")]
        self.assertEqual(len(found), 1)
        os.kill(found[0], 9)
        self.await_line("the coordinator was killed by SIGKILL and is started again")
        self.assert_as_without()

    def test_scancel_ends_everything_and_the_same_command_goes_on(self):
        self.submit()
        self.await_line("^checkpoint ")
        since = time.monotonic()
        self.slurm.run("scancel", self.number)
        self.await_that(lambda: not self.slurm.processes(), "all processes have ended")
        self.assertLess(time.monotonic() - since, CANCEL, self.report())
        self.await_end()
        self.assertEqual(self.slurm.job(self.number)["JobState"], "CANCELLED")
        self.assertIn("train.sbatch: stopping (SIGTERM)", c.read(self.output))
        self.submit()
        self.assert_as_without()
        # And once more, when there is nothing left to do.
        self.submit()
        self.assert_as_without()
        self.assertIn("is finished: ", c.read(self.output))

    def test_a_checkpoint_before_the_time_limit(self):
        certificates = c.make_certificates(os.path.join(self.out, "certificates"))
        self.submit("--servers", "1", job_text=c.job(steps=STEPS), network=["--tls", certificates])
        self.await_line("^step [0-9]+/%d " % STEPS)
        self.slurm.run("scancel", "--batch", "--signal=USR1", self.number)
        self.assertEqual(self.await_end(), 75, self.report())
        self.assertRegex(c.read(self.output), "(?m)^checkpoint .*step-")
        self.assertIn("the same command goes on from there", c.read(self.output))
        self.submit("--servers", "1", job_text=c.job(steps=STEPS))
        self.assert_as_without()

    def test_requeued_at_the_time_limit(self):
        self.submit("--requeue")
        self.await_line("^step [0-9]+/%d " % STEPS)
        self.slurm.run("scancel", "--batch", "--signal=USR1", self.number)
        self.await_that(lambda: self.slurm.job(self.number)["JobState"] == "PENDING", "it is queued")
        self.await_that(lambda: not self.slurm.processes(), "all processes have ended")
        # A slurmd takes a job for the one that it has just killed if it starts within the same
        # second; by itself Slurm waits for two minutes with a job that is queued again.
        time.sleep(3)
        self.slurm.run("scontrol", "update", "JobId=" + self.number, "StartTime=now")
        self.assert_as_without()
        self.assertGreaterEqual(int(self.slurm.job(self.number)["Restarts"]), 1)

    def test_a_job_that_fails(self):
        self.submit(job_text=c.job(edits={"replicas: 4": "replicas: 1"}))
        self.assertEqual(self.await_end(), 1, self.report())
        self.assertRegex(c.read(self.output), "train.sbatch: .*training.replicas is 1")
        self.assertEqual(self.slurm.processes(), {})

    def test_too_small_an_allocation(self):
        self.submit("--servers", "4")
        self.assertEqual(self.await_end(), 2, self.report())
        self.assertIn("the allocation has 5 tasks for 7 processes; submit it with sbatch --ntasks=7",
                      c.read(self.output))


class OptionsTest(c.TestCase):
    def run_script(self, *arguments):
        env = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
        return subprocess.run([SCRIPT] + list(arguments), env=env, text=True, timeout=c.PATIENCE,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def test_options(self):
        job = os.path.join(self.root, "job")
        with open(job, "w") as file:
            file.write(c.job())
        for arguments, status, words in (
            (["--help"], 0, "Usage: sbatch"),
            ([], 2, "--job is missing"),
            (["--job", job], 2, "--out is missing"),
            (["--job", job, "--out", "x"], 2, "give --data or --text"),
            (["--job", job, "--out", "x", "--data", self.data, "--text", job], 2, "exclude each"),
            (["--job", job, "--out", "x", "--data", self.data], 2, "give --tls, or --insecure"),
            (["--job", job, "--out", "x", "--data", self.data, "--insecure", "--tls", self.root], 2,
             "--tls and --insecure exclude each other"),
            (["--job", job, "--out", "x", "--data", self.data, "--insecure"], 2,
             "submit it with sbatch"),
            (["--servers", "0"], 2, "whole number"),
            (["--job"], 2, "needs a value"),
            (["--nonsense"], 2, "unknown option: --nonsense"),
        ):
            with self.subTest(arguments):
                done = self.run_script(*arguments)
                self.assertEqual(done.returncode, status, done.stdout)
                self.assertIn(words, done.stdout)


if __name__ == "__main__":
    c.main()
