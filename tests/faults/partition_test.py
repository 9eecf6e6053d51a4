"""Links on which packets vanish, in one direction or both, while both ends live and are told nothing: the job
ends with the bits of the undisturbed run. Each process is on a host of its own, as a network namespace."""

import time

from tests.faults import cluster as c
from tests.faults import network
from tests.faults.undisturbed import FLAGS, LEASE, SERVER_FLAGS, TIMEOUT, WORKER_FLAGS, UndisturbedCase

MEMBERS = ["s0", "s1", "w0", "w1"]
RECONNECT = 2 * c.DEADLINE_FACTOR  # seconds
# TCP sends again after the sum of 0.2, 0.4, 0.8 .. s, so what was cut for so long is there in time.
SHORT = LEASE / 3


class PartitionTest(UndisturbedCase):
    @classmethod
    def setUpClass(cls):
        why_not = network.own_network()
        if why_not:
            raise c.unittest.SkipTest(why_not)
        super().setUpClass()

    def start_on_hosts(self):
        cluster = self.cluster = self.new_cluster(self.job)
        self.hosts = {}
        for name in ["coordinator"] + MEMBERS:
            self.hosts[name] = network.Host()
            self.addCleanup(self.hosts[name].close)
        cluster.start_coordinator(2, 2, **self.place("coordinator"), flags=FLAGS + [
            "--insecure", "--recoveries=100"])
        reconnect = ["--reconnect_timeout=%gs" % RECONNECT]
        for name in ["s0", "s1"]:
            place = self.place(name)
            cluster.start_server(name, SERVER_FLAGS + reconnect + [
                "--insecure", "--listen", place["listen"]], host=place["host"])
        for name in ["w0", "w1"]:
            cluster.start_worker(name, WORKER_FLAGS + reconnect, host=self.hosts[name])
        cluster.await_line("^checkpoint ")
        return cluster

    def place(self, name):
        return {"host": self.hosts[name], "listen": self.hosts[name].address + ":0"}

    # ---- what is cut

    def ways(self, a, b):
        """The link between two processes in both directions, then in one, then in the other."""
        return [[(a, b), (b, a)], [(a, b)], [(b, a)]]

    def cut(self, ways):
        for a, b in ways:
            self.hosts[a].lose_packets_to(self.hosts[b])

    def heal(self, ways):
        for a, b in ways:
            self.hosts[a].reach(self.hosts[b])

    def cut_for(self, ways, seconds):
        self.cut(ways)
        time.sleep(seconds)
        self.heal(ways)
        # For the next that TCP sends again.
        time.sleep(LEASE)
        self.await_steps()

    def cut_until_noticed(self, ways, longer=0):
        before = self.recoveries()
        self.cut(ways)
        self.await_recovery(before, ways)
        time.sleep(longer)
        self.heal(ways)
        self.await_steps()

    # ---- what is seen of it

    def progress(self):
        return self.cluster["coordinator"].stdout

    def recoveries(self):
        return self.progress().count("recovering: ")

    def await_recovery(self, before, what):
        self.cluster.await_that(lambda: self.recoveries() > before, "%s is noticed" % (what,))

    def is_over(self):
        return self.cluster["coordinator"].status is not None

    def await_steps(self):
        """Until training has gone on, or is over."""
        known = len(self.progress().splitlines())
        deadline = time.monotonic() + c.PATIENCE
        while not self.is_over() and not any(
                line.startswith("step ") for line in self.progress().splitlines()[known:]):
            self.assertLess(time.monotonic(), deadline, self.cluster.report())
            time.sleep(0.02)

    # ---- cases

    def test_worker_and_server_for_a_short_time(self):
        cluster = self.start_on_hosts()
        for ways in self.ways("w0", "s1"):
            self.cut_for(ways, SHORT)
        self.assert_undisturbed(cluster, generations=1)

    def test_worker_and_server_for_longer_than_streams_may_be_away(self):
        cluster = self.start_on_hosts()
        for ways in self.ways("w0", "s1"):
            self.cut_for(ways, RECONNECT + 0.3)
        self.assert_undisturbed(cluster)

    def test_worker_and_server_for_longer_than_peers_wait(self):
        cluster = self.start_on_hosts()
        for ways in self.ways("w1", "s0"):
            self.cut_until_noticed(ways, longer=LEASE)
        self.assert_undisturbed(cluster)
        self.assertGreaterEqual(self.recoveries(), 3)

    def test_member_and_coordinator_for_a_short_time(self):
        cluster = self.start_on_hosts()
        for name in ["s0", "w1"]:
            for ways in self.ways(name, "coordinator"):
                self.cut_for(ways, SHORT)
        self.assert_undisturbed(cluster, generations=1)

    def test_server_and_coordinator_for_longer_than_the_lease(self):
        cluster = self.start_on_hosts()
        for ways in self.ways("s1", "coordinator"):
            self.cut_until_noticed(ways)
        self.assert_undisturbed(cluster)
        self.assertGreaterEqual(self.recoveries(), 3)

    def test_worker_and_coordinator_for_longer_than_the_lease(self):
        cluster = self.start_on_hosts()
        for ways in self.ways("w0", "coordinator"):
            self.cut_until_noticed(ways)
        self.assert_undisturbed(cluster)
        self.assertGreaterEqual(self.recoveries(), 3)

    def test_hosts_unplugged_for_a_short_time(self):
        cluster = self.start_on_hosts()
        for name in ["s0", "w0", "coordinator"]:
            self.hosts[name].unplug()
            time.sleep(SHORT)
            self.hosts[name].plug()
            time.sleep(LEASE)
            self.await_steps()
        self.assert_undisturbed(cluster, generations=1)

    def test_hosts_unplugged_for_longer_than_the_lease(self):
        cluster = self.start_on_hosts()
        for name in ["s0", "w0", "coordinator"]:
            before = self.recoveries()
            self.hosts[name].unplug()
            self.await_recovery(before, name)
            time.sleep(TIMEOUT)
            self.hosts[name].plug()
            self.await_steps()
        self.assert_undisturbed(cluster)


if __name__ == "__main__":
    c.main()
