"""Training goes on while its coordinator is away, and the next coordinator goes on with it."""

import os
import re
import signal
import time

from tests.faults import cluster as c
from tests.faults.undisturbed import FLAGS, LEASE, SERVER_FLAGS, WORKER_FLAGS, UndisturbedCase

# Seconds without a coordinator: longer than any member waits for another.
AWAY = float(os.environ.get("COORDINATOR_AWAY_S", 6))
REJOIN = 5  # seconds
COORDINATOR_FLAGS = FLAGS + ["--rejoin_timeout_s=%d" % REJOIN]


def job(every_steps):
    """With steps of about 20 ms."""
    return c.job(steps=int(100 * AWAY), every_steps=every_steps, edits={
        "d_model: 16": "d_model: 64", "lstm { hidden: 16": "lstm { hidden: 64",
        "hidden: 64 groups": "hidden: 256 groups",
        "lanes: 4 unroll: 8": "lanes: 16 unroll: 16"})


class CoordinatorCase(UndisturbedCase):
    def start(self, job_text=None, flags=()):
        cluster = self.new_cluster(job_text or self.job)
        cluster.start(2, 2, flags=COORDINATOR_FLAGS + list(flags), server_flags=SERVER_FLAGS,
                      worker_flags=WORKER_FLAGS)
        cluster.await_line(r"^step [0-9]{2,}/")
        return cluster

    def start_again(self, cluster):
        cluster.start_coordinator(2, 2, listen=cluster.address, flags=COORDINATOR_FLAGS)

    def last_step(self, cluster):
        """That any coordinator has shown."""
        output = c.read(os.path.join(cluster.folder, "coordinator.out"))
        return max(map(int, re.findall(r"^step (\d+)/", output, re.M)))

    def late_reports(self, cluster):
        """Of each worker: how many reports it kept and sent later."""
        pattern = r"the coordinator is back after .*; (\d+) reports came late"
        return [sum(map(int, re.findall(pattern, cluster[name].stderr))) for name in ("w0", "w1")]

    def assert_went_on(self, cluster, reports):
        """Without another generation, and without waiting for the coordinator for so many reports."""
        self.assert_undisturbed(cluster, generations=1)
        self.assertNotIn("generation 2", cluster["coordinator"].stdout, cluster.report())
        for late in self.late_reports(cluster):
            self.assertGreater(late, reports, cluster.report())


class AwayTest(CoordinatorCase):
    # The only checkpoint is the last.
    job = job(10 ** 9)

    def test_killed_for_a_while(self):
        cluster = self.start()
        cluster.kill("coordinator")
        time.sleep(AWAY)
        self.start_again(cluster)
        cluster.await_line(r"^generation 1 goes on: all are back$")
        self.assert_went_on(cluster, reports=10 * AWAY)

    def test_stopped_for_longer_than_anybody_waits(self):
        cluster = self.start()
        cluster["coordinator"].send(signal.SIGSTOP)
        time.sleep(AWAY)
        cluster["coordinator"].send(signal.SIGCONT)
        self.assert_went_on(cluster, reports=10 * AWAY)

    def test_killed_again_and_again(self):
        cluster = self.start()
        for pause in (0, 0.3, 1.5, 0.1):
            cluster.kill("coordinator")
            time.sleep(pause)
            self.start_again(cluster)
            time.sleep(0.5)
        self.assert_went_on(cluster, reports=0)

    def test_a_member_lost_meanwhile(self):
        cluster = self.start()
        cluster.kill("coordinator")
        cluster.kill("s1")
        time.sleep(1)
        self.start_again(cluster)
        # Whoever missed it first, or its place stays empty.
        cluster.await_line(r"^recovering: .*server/s1")
        self.start_server(cluster, "s1")
        self.assert_undisturbed(cluster, generations=2)

    def test_a_member_lost_and_started_again_meanwhile(self):
        cluster = self.start()
        cluster.kill("coordinator")
        cluster.kill("w1")
        self.start_worker(cluster, "w1")
        time.sleep(1)
        self.start_again(cluster)
        self.assert_undisturbed(cluster, generations=2)

    def test_a_member_that_stands_still_meanwhile(self):
        cluster = self.start()
        cluster["w1"].send(signal.SIGSTOP)
        cluster.kill("coordinator")
        time.sleep(0.5)
        self.start_again(cluster)
        cluster.await_line(r"^recovering: ")
        cluster["w1"].send(signal.SIGCONT)
        self.assert_undisturbed(cluster)


class CheckpointTest(CoordinatorCase):
    EVERY = 100
    job = job(EVERY)

    def test_a_checkpoint_waits_for_the_coordinator(self):
        cluster = self.start()
        cluster.kill("coordinator")
        cut = os.path.join(cluster.checkpoint_dir, "step-%08d.generation-1" % self.EVERY)
        cluster.await_that(lambda: os.path.isdir(cut) or cluster.checkpoints(), "a cut")
        time.sleep(2 * LEASE)
        self.assertLessEqual(len(cluster.checkpoints()), 1, "committed by nobody")
        self.start_again(cluster)
        self.assert_went_on(cluster, reports=0)

    def test_killed_at_each_checkpoint(self):
        cluster = self.start()
        for number in range(1, 5):
            folder = os.path.join(cluster.checkpoint_dir, "step-%08d" % (number * self.EVERY))
            # In the middle of a cut, between its files.
            cluster.await_that(lambda: os.path.isdir(folder + ".generation-1") or
                               number * self.EVERY <= max(cluster.checkpoints(), default=0), "a cut")
            cluster.kill("coordinator")
            self.start_again(cluster)
        self.assert_undisturbed(cluster, generations=1)
        self.assertNotIn("generation 2", cluster["coordinator"].stdout, cluster.report())

    def test_a_checkpoint_on_demand_after_an_absence(self):
        cluster = self.start()
        cluster.kill("coordinator")
        time.sleep(1)
        self.start_again(cluster)
        told = self.run_program([c.MOECTL, "checkpoint", "--coordinator", cluster.address])
        self.assertEqual(told.status, 0, told.report())
        self.assertRegex(told.stdout, "step-")
        self.assert_went_on(cluster, reports=0)


if __name__ == "__main__":
    c.main()
