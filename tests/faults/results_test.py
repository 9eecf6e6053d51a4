"""However a job is run by real processes, its result is the same, to the bit."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess

from tests.faults import cluster as c

STEPS = 12
EVERY = 5


class ResultsTest(c.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.job = c.job(steps=STEPS, every_steps=EVERY)
        # Long enough to be stopped between its first checkpoint and its end, whatever the machine.
        cls.long_job = c.job(steps=200, every_steps=10)
        cls.expected = cls.train_in_process("short", cls.job)
        cls.expected_of_long_job = cls.train_in_process("long", cls.long_job)

    @classmethod
    def train_in_process(cls, name, job_text):
        """The undisturbed run: one server and one worker within one process."""
        path = os.path.join(cls.root, name + ".textproto")
        with open(path, "w") as file:
            file.write(job_text)
        printed = subprocess.run(
            [c.TRAIN_IN_PROCESS, "--job", path, "--data", cls.data, "--out",
             os.path.join(cls.root, name)],
            check=True, timeout=c.PATIENCE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        return json.loads(printed.stdout)

    def assert_expected(self, result, expected=None):
        expected = expected or self.expected
        self.assertEqual(result["digest"], expected["digest"])
        self.assertEqual(result["test_perplexity"], expected["test_perplexity"])

    def test_two_servers_and_two_workers(self):
        self.assert_expected(self.train(self.job, servers=2, workers=2))

    def test_more_servers_than_workers_with_threads(self):
        cluster = self.new_cluster(self.job)
        cluster.start_coordinator(servers=3, workers=1)
        for i in range(3):
            cluster.start_server("s%d" % i, flags=["--threads", "2"])
        cluster.start_worker("w0", flags=["--threads", "2"])
        self.assert_expected(self.assert_finished(cluster))

    def test_members_before_the_coordinator(self):
        cluster = self.new_cluster(self.job)
        cluster.address = c.free_address()
        cluster.start_worker("w1")
        cluster.start_worker("w0")
        cluster.start_server("s1")
        # They say what they wait for while they do.
        cluster.await_that(lambda: "waiting for the coordinator at " + cluster.address in
                           cluster["w1"].stderr, "w1 waits")
        cluster.start_coordinator(servers=2, workers=2, listen=cluster.address)
        cluster.await_line("waiting for 1 of 2 servers$")
        cluster.start_server("s0")
        self.assert_expected(self.assert_finished(cluster))

    def test_unix_sockets(self):
        cluster = self.new_cluster(self.job)
        # Their paths are short by nature; the folder of a test needn't be.
        short = os.path.join("/tmp", os.path.basename(self.root) + ".sock")
        self.addCleanup(lambda: os.path.exists(short) and os.remove(short))
        cluster.start_coordinator(listen="unix:" + short)
        cluster.start_server("s0")
        cluster.start_worker("w0")
        self.assert_expected(self.assert_finished(cluster))

    def test_stopped_and_resumed_on_another_shape(self):
        first = self.new_cluster(self.long_job).start(servers=1, workers=4)
        first.await_line("^checkpoint ")
        first["coordinator"].send(signal.SIGTERM)
        first.wait_all(c.FAULT)
        self.assertEqual(first["coordinator"].status, 1, first.report())
        last = first.checkpoints()[-1]
        self.assertLess(last, 200)
        second = self.new_cluster(self.long_job, checkpoint_dir=first.checkpoint_dir)
        second.start(servers=3, workers=2, flags=["--resume"])
        result = self.assert_finished(second)
        self.assertIn("starting from {}/step-{:08d}".format(first.checkpoint_dir, last),
                      second["coordinator"].stdout)
        self.assert_expected(result, self.expected_of_long_job)

    def test_killed_and_resumed(self):
        first = self.new_cluster(self.long_job).start(servers=2, workers=2)
        first.await_line("^checkpoint ")
        for process in first.processes.values():
            process.close()
        second = self.new_cluster(self.long_job, checkpoint_dir=first.checkpoint_dir)
        second.start(flags=["--resume"])
        self.assert_expected(self.assert_finished(second), self.expected_of_long_job)

    def test_resumed_on_the_same_shape_on_more_and_on_fewer(self):
        first = self.new_cluster(self.long_job).start(servers=2, workers=2)
        first.await_line("^checkpoint ")
        first["coordinator"].send(signal.SIGTERM)
        first.wait_all(c.FAULT)
        begun = first.checkpoints()[-1]
        self.assertLess(begun, 200)
        for servers, workers in itertools.product([1, 2, 3], [1, 2, 4]):
            with self.subTest(servers=servers, workers=workers):
                again = self.new_cluster(self.long_job)
                shutil.copytree(first.checkpoint_dir, again.checkpoint_dir)
                again.start(servers, workers, flags=["--resume"])
                result = self.assert_finished(again)
                self.assertIn("starting from {}/step-{:08d}".format(again.checkpoint_dir, begun),
                              again["coordinator"].stdout)
                self.assert_expected(result, self.expected_of_long_job)

    def test_checkpoint_has_the_digest_of_the_run(self):
        result = self.train(self.job, servers=2, workers=2)
        self.assert_expected(result)
        for folder in (result["checkpoint"], os.path.dirname(result["checkpoint"])):
            printed = self.run_program([c.MOECTL, "digest", "--checkpoint", folder])
            self.assertEqual(printed.status, 0, printed.report())
            self.assertEqual(printed.stdout.strip(), result["digest"])

    def test_evaluating_the_checkpoint_gives_the_perplexity_of_the_run(self):
        cluster = self.new_cluster(self.job).start(servers=2, workers=2)
        result = self.assert_finished(cluster)
        printed = re.search(r"^test perplexity ([0-9.]+) after step 12\b",
                            cluster["coordinator"].stdout, re.M)
        self.assertIsNotNone(printed, cluster.report())
        self.assertEqual(printed[1], "%.2f" % result["test_perplexity"])
        evaluated = self.run_program([
            c.MOECTL, "eval", "--checkpoint", cluster.checkpoint_dir, "--data", self.data, "--json",
            "--bin_dir", "."
        ])
        self.assertEqual(evaluated.status, 0, evaluated.report())
        self.assertEqual(json.loads(evaluated.stdout)["perplexity"], result["test_perplexity"])

    def test_each_experts_highest_gates_in_held_out_text(self):
        cluster = self.new_cluster(self.job).start(servers=1, workers=1)
        self.assert_finished(cluster)
        ask = [c.MOECTL, "experts", "--top-contexts", "3", "--checkpoint", cluster.checkpoint_dir,
               "--data", self.data, "--bin_dir", "."]
        printed = self.run_program(ask + ["--json"])
        self.assertEqual(printed.status, 0, printed.report())
        experts = json.loads(printed.stdout)["experts"]
        self.assertGreater(len(experts), 1)
        for expert in experts:
            gates = [context["gate"] for context in expert["contexts"]]
            self.assertEqual(gates, sorted(gates, reverse=True))
            self.assertTrue(1 <= len(gates) <= 3 and 0 < gates[-1] <= gates[0] <= 1, expert)
            self.assertEqual(len({context["position"] for context in expert["contexts"]}),
                             len(gates))

        wrong = self.run_program(ask + ["--expert", "1000"])
        self.assertEqual(wrong.status, 1)
        self.assertIn("there is no expert 1000", wrong.stderr)


if __name__ == "__main__":
    c.main()
