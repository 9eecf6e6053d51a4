"""A job survives the loss of any process, and ends with the bits of the undisturbed run."""

import signal
import time

from tests.faults import cluster as c
from tests.faults.undisturbed import FLAGS, LEASE, TIMEOUT, UndisturbedCase


class LostProcessTest(UndisturbedCase):
    def test_server_killed_and_started_again(self):
        cluster = self.start()
        cluster.kill("s0")
        self.start_server(cluster, "s0")
        self.assert_undisturbed(cluster, generations=2)

    def test_worker_killed_and_started_again(self):
        cluster = self.start()
        cluster.kill("w1")
        self.start_worker(cluster, "w1")
        self.assert_undisturbed(cluster, generations=2)

    def test_another_takes_the_place(self):
        cluster = self.start()
        cluster.kill("s0")
        self.start_server(cluster, "other")
        cluster.kill("w0")
        self.start_worker(cluster, "another")
        self.assert_undisturbed(cluster)

    def test_server_that_does_not_come_back(self):
        cluster = self.start(servers=3, flags=["--rejoin_timeout_s=1"])
        cluster.kill("s1")
        cluster.await_line(r"^going on without 1 of 3 servers")
        self.assert_undisturbed(cluster, generations=2)

    def test_worker_that_does_not_come_back(self):
        cluster = self.start(flags=["--rejoin_timeout_s=1"])
        cluster.kill("w0")
        cluster.await_line(r"^going on without 1 of 2 workers")
        self.assert_undisturbed(cluster, generations=2)

    def test_all_members_killed(self):
        cluster = self.start()
        for name in ["s0", "s1", "w0", "w1"]:
            cluster.kill(name)
        for name in ["s0", "s1"]:
            self.start_server(cluster, name)
        for name in ["w0", "w1"]:
            self.start_worker(cluster, name)
        self.assert_undisturbed(cluster)

    def test_coordinator_killed_and_started_again(self):
        cluster = self.start()
        cluster.kill("coordinator")
        time.sleep(1)
        cluster.start_coordinator(2, 2, listen=cluster.address, flags=FLAGS)
        self.assert_undisturbed(cluster, generations=1)
        self.assertIn("generation 1 goes on: all are back", cluster["coordinator"].stdout)

    def test_coordinator_started_again_for_other_numbers(self):
        cluster = self.start()
        cluster.kill("coordinator")
        cluster.start_coordinator(3, 2, listen=cluster.address, flags=FLAGS)
        self.start_server(cluster, "s2")
        cluster.await_line("^training small on 3 servers and 2 workers$")
        self.assert_undisturbed(cluster)
        self.assertIn("starting from " + cluster.checkpoint_dir, cluster["coordinator"].stdout)

    def test_everything_killed_and_started_again(self):
        cluster = self.start()
        for name in list(cluster.processes):
            cluster.kill(name)
        cluster.start(2, 1, flags=FLAGS)
        self.assert_undisturbed(cluster)

    def test_killed_again_and_again(self):
        cluster = self.start(flags=["--recoveries=100"])
        for round in range(6):
            name = ["s0", "w0", "s1", "w1", "s0", "w0"][round]
            cluster.kill(name)
            (self.start_worker if name[0] == "w" else self.start_server)(cluster, name)
            time.sleep(0.4)
        self.assert_undisturbed(cluster)

    def test_too_many_losses_fail_the_job(self):
        # Without a checkpoint each generation begins anew, and the second doesn't get as far.
        cluster = self.new_cluster(c.job()).start(2, 1, flags=FLAGS + ["--recoveries=1"])
        cluster.await_line("^step [0-9]{4,}/")
        cluster.kill("s0")
        self.start_server(cluster, "s0")
        cluster.await_that(lambda: cluster["coordinator"].stdout.count("training small") == 2,
                           "the second generation")
        cluster.kill("s0")
        self.assert_failed(cluster, time.monotonic(), "may fail in a row: --recoveries")


class StandsStillTest(UndisturbedCase):
    def test_server_past_its_lease(self):
        cluster = self.start()
        stopped = cluster.processes.pop("s1")
        self.addCleanup(stopped.close)
        stopped.send(signal.SIGSTOP)
        cluster.await_line(r"^recovering: .*server/s1")
        # Its name is free, and it finds out when it wakes.
        self.start_server(cluster, "s1")
        self.await_joined(cluster, "s1")
        stopped.send(signal.SIGCONT)
        self.assertEqual(stopped.wait(c.FAULT), 1, stopped.report())
        self.assertRegex(stopped.last_line, r"server/s1 .* lives; a second server takes")
        self.assert_undisturbed(cluster)

    def test_server_past_its_lease_without_a_successor(self):
        cluster = self.start()
        cluster["s1"].send(signal.SIGSTOP)
        cluster.await_line(r"^recovering: .*server/s1")
        cluster["s1"].send(signal.SIGCONT)
        self.assert_undisturbed(cluster)

    def test_worker_past_its_lease(self):
        cluster = self.start()
        stopped = cluster.processes.pop("w1")
        self.addCleanup(stopped.close)
        stopped.send(signal.SIGSTOP)
        cluster.await_line(r"^recovering: .*worker/w1")
        self.start_worker(cluster, "w1")
        self.await_joined(cluster, "w1")
        stopped.send(signal.SIGCONT)
        self.assertEqual(stopped.wait(c.FAULT), 1, stopped.report())
        self.assert_undisturbed(cluster)

    def test_a_pause_within_the_lease_is_none(self):
        cluster = self.start()
        for name in ["s0", "w0", "coordinator"]:
            cluster[name].send(signal.SIGSTOP)
            time.sleep(LEASE / 3)
            cluster[name].send(signal.SIGCONT)
        self.assert_undisturbed(cluster, generations=1)

    def test_coordinator_for_longer_than_the_lease(self):
        cluster = self.start()
        cluster["coordinator"].send(signal.SIGSTOP)
        # Workers that wait for its answer keep others waiting for less than TIMEOUT.
        time.sleep(1.4 * LEASE)
        cluster["coordinator"].send(signal.SIGCONT)
        self.assert_undisturbed(cluster, generations=1)


class NetworkTest(UndisturbedCase):
    def test_connections_break(self):
        cluster = self.start_with_proxies()
        self.proxies["s0"].drop()
        self.assert_undisturbed(cluster, generations=1)

    def test_partition(self):
        cluster = self.start_with_proxies()
        self.proxies["s1"].blocked = {"to_target", "to_client"}
        cluster.await_line(r"^recovering: ")
        self.proxies["s1"].blocked = set()
        self.assert_undisturbed(cluster)

    def test_one_way_partitions(self):
        cluster = self.start_with_proxies()
        for name, way in [("s0", "to_client"), ("s1", "to_target")]:
            before = cluster["coordinator"].stdout.count("recovering: ")
            self.proxies[name].blocked = {way}
            cluster.await_that(
                lambda: cluster["coordinator"].stdout.count("recovering: ") > before, way)
            self.proxies[name].blocked = set()
        self.assert_undisturbed(cluster)

    def test_short_stalls_of_all_links_in_turn(self):
        cluster = self.start_with_proxies()
        for name in ["s0", "s1", "s0", "s1"]:
            self.proxies[name].blocked = {"to_target", "to_client"}
            time.sleep(TIMEOUT / 6)
            self.proxies[name].blocked = set()
        self.assert_undisturbed(cluster, generations=1)


if __name__ == "__main__":
    c.main()
