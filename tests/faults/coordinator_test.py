"""Training goes on while its coordinator is away, and the next coordinator goes on with it."""

import os
import re
import shutil
import signal
import socket
import tempfile
import time

from tests.faults import cluster as c
from tests.faults.undisturbed import FLAGS, LEASE, SERVER_FLAGS, WORKER_FLAGS, UndisturbedCase

# Seconds without a coordinator: longer than any member waits for another.
AWAY = float(os.environ.get("COORDINATOR_AWAY_S", 6))
REJOIN = 5  # seconds
COORDINATOR_FLAGS = FLAGS + ["--rejoin_timeout_s=%d" % REJOIN]


def job(every_steps):
    """With steps of 10 to 20 ms."""
    return c.job(steps=200 + int(150 * AWAY), every_steps=every_steps, edits={
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


class Etcd:
    """An etcd of one member, for a test."""

    def __init__(self, test, folder):
        os.makedirs(folder)
        self._test = test
        self._folder = folder
        self.address = c.free_address()
        self._peer = c.free_address()
        self.start()

    def start(self):
        client, peer = "http://" + self.address, "http://" + self._peer
        self._process = c.Process("etcd", [
            "/usr/bin/etcd", "--name", "e", "--data-dir", os.path.join(self._folder, "data"),
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", "e=" + peer, "--log-level", "error"], self._folder)
        self._test.addCleanup(self._process.close)

    def kill(self):
        self._process.send(signal.SIGKILL)
        self._process.wait()

    def lose_data(self):
        shutil.rmtree(os.path.join(self._folder, "data"))


class EtcdCase(CoordinatorCase):
    job = job(10 ** 9)

    def start_two(self, flags=(), certificates=None, standby=None):
        """A job with a coordinator that leads, and another that stands by. certificates: their folder;
        standby: more arguments of start_coordinator."""
        tls = lambda role: c.tls_flags(certificates, role) if certificates else []
        cluster = self.new_cluster(self.job)
        self.etcd = Etcd(self, cluster.folder + ".etcd")
        self.flags = COORDINATOR_FLAGS + ["--store=etcd://%s/jobs/small" % self.etcd.address,
                                          "--leader_lease_s=2"] + list(flags) + tls("coordinator")
        cluster.start_coordinator(2, 2, flags=self.flags)
        cluster.await_line("^leads the job from ")
        self.leader = cluster.address
        cluster.start_coordinator(2, 2, flags=self.flags, name="second_coordinator",
                                  **(standby or {}))
        self.standby = cluster.address
        cluster.await_that(lambda: "standby; the leader is " + self.leader in
                           cluster["second_coordinator"].stdout, "a standby")
        # Whoever tries the standby first finds the leader.
        cluster.address = self.standby + "," + self.leader
        for name in ("s0", "s1"):
            cluster.start_server(name, flags=SERVER_FLAGS + tls("server"))
        for name in ("w0", "w1"):
            cluster.start_worker(name, flags=WORKER_FLAGS + tls("worker"))
        cluster.await_line(r"^step [0-9]{2,}/")
        return cluster

    def take_over(self, cluster):
        """The second one is the coordinator from here on. Returns the first."""
        first = cluster.processes.pop("coordinator")
        self.addCleanup(first.close)
        cluster.processes["coordinator"] = cluster.processes.pop("second_coordinator")
        return first


class StandbyTest(EtcdCase):
    def test_takes_over_when_the_leader_is_killed(self):
        cluster = self.start_two()
        cluster["coordinator"].send(signal.SIGKILL)
        self.take_over(cluster).wait()
        cluster.await_line("^generation 1 goes on: all are back$")
        self.assert_went_on(cluster, reports=10)

    def test_takes_over_with_tls(self):
        certificates = c.make_certificates(os.path.join(self.root, "certificates"))
        cluster = self.start_two(certificates=certificates)
        cluster["coordinator"].send(signal.SIGKILL)
        self.take_over(cluster).wait()
        cluster.await_line("^generation 1 goes on: all are back$")
        shown = self.run_program([c.MOECTL, "status", "--coordinator", cluster.address] +
                                 c.tls_flags(certificates, "operator"))
        self.assertEqual(shown.status, 0, shown.report())
        self.assert_went_on(cluster, reports=10)

    def test_takes_over_at_once_from_a_supervised_one_that_is_told_to_stop(self):
        # Nobody waits for the end of this lease.
        cluster = self.start_two(flags=["--supervised", "--leader_lease_s=3600"])
        cluster["coordinator"].send(signal.SIGTERM)
        first = self.take_over(cluster)
        self.assertEqual(first.wait(c.FAULT), 0, first.report())
        self.assertIn("the job waits for this command to be started again", first.stderr)
        cluster.await_line("^generation 1 goes on: all are back$")
        self.assert_undisturbed(cluster, generations=1)

    def test_a_supervised_standby_is_ready_and_may_be_stopped(self):
        manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(manager.close)
        manager.settimeout(c.FAULT)
        # Such a path has at most 107 characters.
        folder = tempfile.TemporaryDirectory(dir="/tmp")
        self.addCleanup(folder.cleanup)
        path = os.path.join(folder.name, "manager")
        manager.bind(path)
        cluster = self.start_two(flags=["--supervised"], standby={"env": {"NOTIFY_SOCKET": path}})
        said = ""
        while "READY=1" not in said or "STATUS=standby; the leader is " + self.leader not in said:
            said += manager.recv(4096).decode() + "\n"
        standby = cluster.processes.pop("second_coordinator")
        self.addCleanup(standby.close)
        standby.send(signal.SIGTERM)
        self.assertEqual(standby.wait(c.FAULT), 0, standby.report())
        self.assert_undisturbed(cluster, generations=1)

    def test_a_supervised_one_goes_on_where_the_leader_failed(self):
        cluster = self.start_two(flags=["--supervised", "--recoveries=0"])
        cluster.kill("s1")
        first = self.take_over(cluster)
        self.assertEqual(first.wait(c.FAULT), 1, first.report())
        for name in ("s0", "w0", "w1"):
            cluster.processes.pop(name).wait(c.FAULT)
        for name in ("s0", "s1"):
            self.start_server(cluster, name)
        for name in ("w0", "w1"):
            self.start_worker(cluster, name)
        self.assert_undisturbed(cluster)

    def test_takes_over_from_one_that_stands_still(self):
        cluster = self.start_two()
        cluster["coordinator"].send(signal.SIGSTOP)
        first = self.take_over(cluster)
        cluster.await_line("^generation 1 goes on: all are back$")
        said = first.stdout
        first.send(signal.SIGCONT)
        self.assertEqual(first.wait(c.FAULT), 1, first.report())
        self.assertRegex(first.last_line, "doesn't lead any more|another leads")
        self.assertEqual(first.stdout, said, "it did nothing more")
        self.assert_went_on(cluster, reports=10)

    def test_ends_with_the_job(self):
        cluster = self.start_two()
        self.assert_undisturbed(cluster, generations=1)
        self.assertIn("the job is finished", cluster["second_coordinator"].stdout)

    def test_says_who_leads(self):
        cluster = self.start_two()
        one = self.run_program([c.MOECTL, "status", "--coordinator", self.standby])
        self.assertEqual(one.status, 1, one.report())
        self.assertIn("standby; the leader is " + self.leader, one.stderr)
        both = self.run_program([c.MOECTL, "status", "--coordinator", cluster.address])
        self.assertEqual(both.status, 0, both.report())
        self.assert_undisturbed(cluster, generations=1)


class EtcdAwayTest(EtcdCase):
    def test_etcd_killed_for_a_while(self):
        cluster = self.start_two()
        self.etcd.kill()
        time.sleep(AWAY)
        self.etcd.start()
        self.assert_undisturbed(cluster, generations=1)
        outputs = [cluster[name].stdout for name in ("coordinator", "second_coordinator")]
        self.assertNotIn("generation 2", "".join(outputs))

    def test_etcd_and_the_coordinators_killed(self):
        cluster = self.start_two()
        self.etcd.kill()
        for name in ("coordinator", "second_coordinator"):
            cluster.kill(name)
        time.sleep(1)
        self.etcd.start()
        address = cluster.address
        cluster.start_coordinator(2, 2, listen=self.leader, flags=self.flags)
        cluster.address = address
        cluster.await_line("^generation 1 goes on: all are back$")
        self.assert_went_on(cluster, reports=0)

    def test_etcd_loses_its_data(self):
        cluster = self.start_two()
        self.etcd.kill()
        self.etcd.lose_data()
        self.etcd.start()
        self.assertEqual(cluster["coordinator"].wait(c.FAULT), 1, cluster.report())
        self.assertRegex(cluster["coordinator"].last_line, "lost (its )?data")


if __name__ == "__main__":
    c.main()
