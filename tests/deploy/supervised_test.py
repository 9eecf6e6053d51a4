"""coordinator --supervised and --linger: what a supervisor stops and starts goes on, and ends once."""

import json
import os
import signal
import subprocess
import time

from tests.faults import cluster as c
from tests.faults import undisturbed as u

FLAGS = ["--supervised"]


class SupervisedTest(u.UndisturbedCase):
    def stop_coordinator(self, cluster):
        process = cluster.processes.pop("coordinator")
        self.addCleanup(process.close)
        process.send(signal.SIGTERM)
        self.assertEqual(process.wait(c.FAULT), 0, process.report())
        self.assertIn("the job waits for this command to be started again", process.stderr)

    def restart_coordinator(self, cluster, flags=(), **options):
        return cluster.start_coordinator(2, 2, listen=cluster.address,
                                         flags=u.FLAGS + FLAGS + list(flags), **options)

    def test_members_wait_for_the_next_start(self):
        cluster = self.start(flags=FLAGS)
        self.stop_coordinator(cluster)
        self.restart_coordinator(cluster)
        self.assert_undisturbed(cluster)

    def test_everybody_is_stopped_and_started(self):
        cluster = self.start(flags=FLAGS)
        self.stop_coordinator(cluster)
        for name in ("s0", "s1", "w0", "w1"):
            process = cluster.processes.pop(name)
            self.addCleanup(process.close)
            process.send(signal.SIGTERM)
            self.assertEqual(process.wait(c.FAULT), 0, process.report())
        self.restart_coordinator(cluster)
        for i in range(2):
            self.start_server(cluster, "s%d" % i)
            self.start_worker(cluster, "w%d" % i)
        self.assert_undisturbed(cluster)

    def test_a_failed_job_goes_on_from_its_last_checkpoint(self):
        cluster = self.start(flags=FLAGS + ["--recoveries=0"])
        cluster.kill("s1")
        cluster.wait_all(c.FAULT)
        self.assertEqual(cluster["coordinator"].status, 1, cluster.report())
        for name in ("coordinator", "s0", "w0", "w1"):
            cluster.processes.pop(name)
        self.restart_coordinator(cluster)
        for i in range(2):
            self.start_server(cluster, "s%d" % i)
            self.start_worker(cluster, "w%d" % i)
        self.assert_undisturbed(cluster)

    def test_a_finished_job_stays_finished(self):
        cluster = self.start(flags=FLAGS)
        self.assert_undisturbed(cluster)
        cluster.processes.clear()
        process = self.restart_coordinator(cluster, wait=False)
        self.assertEqual(process.wait(c.FAULT), 0, process.report())
        self.assertIn("the job small is finished: ", process.stdout)
        self.assertIn(self.undisturbed["digest"], process.stdout)
        cluster.processes.clear()
        # Until it is to train longer.
        with open(cluster.job_path, "w") as file:
            file.write(c.job(steps=u.STEPS + 1, every_steps=u.EVERY))
        self.restart_coordinator(cluster)
        for i in range(2):
            self.start_server(cluster, "s%d" % i)
            self.start_worker(cluster, "w%d" % i)
        self.assertEqual(self.assert_finished(cluster)["step"], u.STEPS + 1)

    def test_without_it_a_stop_fails_the_job(self):
        cluster = self.start()
        cluster["coordinator"].send(signal.SIGTERM)
        self.assert_failed(cluster, time.monotonic(), "the coordinator was told to stop")

    def test_linger(self):
        cluster = self.new_cluster(c.job(steps=5))
        linger = ["--linger"]
        cluster.start(servers=1, workers=1, flags=FLAGS + linger, server_flags=linger,
                      worker_flags=linger)
        cluster.await_line("parameter digest ")
        self.assertEqual(self.phase(cluster), "PHASE_FINISHED")
        time.sleep(1)
        self.assertEqual([p.status for p in cluster.processes.values()], [None] * 3,
                         cluster.report())
        self.stop_all(cluster)
        process = cluster.start_coordinator(listen=cluster.address, flags=FLAGS + linger, wait=False)
        cluster.await_that(lambda: "is finished: " in process.stdout, "it says so")
        time.sleep(1)
        self.stop_all(cluster)

    def phase(self, cluster):
        deadline = time.monotonic() + c.PATIENCE
        while True:
            status = json.loads(subprocess.run(
                [c.MOECTL, "status", "--json", "--coordinator", cluster.address],
                stdout=subprocess.PIPE, check=True, timeout=c.PATIENCE).stdout)
            phase = status["state"]["phase"]
            if phase == "PHASE_FINISHED" or time.monotonic() > deadline:
                return phase
            time.sleep(0.1)

    def stop_all(self, cluster):
        for process in cluster.processes.values():
            self.assertIsNone(process.status, cluster.report())
            process.send(signal.SIGTERM)
        for process in cluster.processes.values():
            self.assertEqual(process.wait(c.FAULT), 0, cluster.report())
        cluster.processes.clear()


class UsageTest(c.TestCase):
    def test_not_with_an_evaluation(self):
        process = self.run_program([os.path.abspath(c.COORDINATOR), "--supervised", "--evaluate",
                                    "test", "--checkpoint", self.root])
        self.assertEqual(process.status, 2)
        self.assertIn("--supervised is for training", process.stderr)


if __name__ == "__main__":
    c.main()
