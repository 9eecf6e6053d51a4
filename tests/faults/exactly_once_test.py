"""Whatever becomes of messages and of who sends them, each counts once: the run ends with the bits of the
undisturbed one, and the servers' traces prove it for every contribution of every step that counts.

SEED=N takes another schedule; a failure prints its own.
"""

import contextlib
import json
import os
import random
import signal
import sys
import time

from tests.faults import cluster as c
from tests.faults.proxy import Proxy
from tests.faults.undisturbed import FLAGS, UndisturbedCase

FRAME_PROXY = "tests/faults/frame_proxy"
SEED = int(os.environ.get("SEED", "1"))
STEPS = 60
# All that workers and servers say to each other: tables, a hierarchical and a recurrent mixture, clipping.
JOB = """
name: "everything"
seed: 5
model {
  d_model: 16
  tables { shards: 3 candidates: 20 }
  layers { lstm { hidden: 16 forget_bias: 1 } dropout: 0.1 residual: true }
  layers {
    moe {
      experts: 16 groups: 4 k_primary: 2 k: 2 hidden: 16 gating: GATING_NOISY_TOP_K
      w_importance: 0.1 w_load: 0.1 sigmoid_output: true
    }
    residual: true
  }
  layers {
    recurrent_moe {
      hidden: 16
      input { experts: 8 k: 2 groups: 4 gating: GATING_NOISY_TOP_K w_importance: 0.1 w_load: 0.1 }
      recurrent { experts: 6 k: 2 groups: 3 gating: GATING_NOISY_TOP_K w_importance: 0.1 w_load: 0.1 }
    }
    residual: true
  }
}
optimizer { adam {} schedule { base_rate: 0.02 } clip_norm: 0.05 }
training { replicas: 4 waves: 2 lanes: 4 unroll: 4 steps: %d }
checkpointing { every_steps: 20 }
""" % STEPS
PATIENCE = 30 * c.DEADLINE_FACTOR  # seconds that peers wait for each other
MOST = 60  # cuts, after which a slow machine may end its run
CALM = ["--heartbeat_ms=200", "--lease_ms=%d" % (15000 * c.DEADLINE_FACTOR)]


class ExactlyOnceTest(UndisturbedCase):
    job = JOB

    def start_cluster(self, flags=CALM, reconnect=10, make_proxy=None):
        """Two workers and two servers, each of these behind what make_proxy(name, target_file) returns, as
        an address."""
        self.reconnect = ["--reconnect_timeout=%gs" % (reconnect * c.DEADLINE_FACTOR)]
        cluster = self.cluster = self.new_cluster(self.job)
        self.trace = os.path.join(cluster.folder, "trace")
        cluster.start_coordinator(2, 2, flags=flags)
        self.addresses = {}
        for name in ["s0", "s1"]:
            self.addresses[name] = make_proxy(name, self.port_file(name))
            self.start_a_server(name)
        for name in ["w0", "w1"]:
            self.start_a_worker(name)
        return cluster

    def port_file(self, name):
        return os.path.join(self.cluster.folder, name + ".port")

    def start_a_server(self, name):
        if os.path.exists(self.port_file(name)):
            os.remove(self.port_file(name))
        self.cluster.start_server(name, [
            "--advertise", self.addresses[name], "--port_file", self.port_file(name),
            "--trace_dir", self.trace, "--rendezvous_timeout=%gs" % PATIENCE] + self.reconnect)
        self.cluster.await_that(lambda: os.path.exists(self.port_file(name)), name + " listens")

    def start_a_worker(self, name):
        return self.cluster.start_worker(name, ["--step_timeout=%gs" % PATIENCE] + self.reconnect)

    def byte_proxies(self):
        """For make_proxy; they are found in self.proxies."""
        self.proxies = {}

        class LateTarget(Proxy):
            def _carry(self, client):
                self.target = c.read(self.target_file).strip()
                super()._carry(client)

        def make(name, target_file):
            proxy = self.proxies[name] = LateTarget("")
            proxy.target_file = target_file
            self.addCleanup(proxy.close)
            return proxy.address

        return make

    def frame_proxies(self, flags):
        """For make_proxy; flags: of each server's."""
        self.frame_proxy = {}

        def make(name, target_file):
            port_file = target_file + ".proxy"
            process = self.frame_proxy[name] = c.Process("proxy of " + name, [
                FRAME_PROXY, "--port_file", port_file, "--target_file", target_file] + flags[name],
                self.cluster.folder, log="proxy." + name)
            self.addCleanup(process.close)
            self.cluster.await_that(lambda: os.path.exists(port_file), "a proxy listens")
            return c.read(port_file).strip()

        return make

    @contextlib.contextmanager
    def schedule(self):
        """What was done, shown if it goes wrong."""
        done = ["SEED=%d" % SEED]
        try:
            yield done
        except BaseException:
            print("\n".join(done), file=sys.stderr)
            for process in getattr(self, "frame_proxy", {}).values():
                print(process.report(), file=sys.stderr)
            raise

    def running(self):
        return self.cluster["coordinator"].status is None

    def taken_up(self):
        """How often workers took up a stream."""
        return sum(process.stderr.count("took up the stream")
                   for name, process in self.cluster.processes.items() if name[0] == "w")

    def assert_exactly_once(self, generations):
        self.assert_undisturbed(self.cluster, generations=generations)
        process = self.run_program([c.MOECTL, "trace", "--dir", self.trace, "--steps", STEPS, "--json"])
        self.assertEqual(process.status, 0, process.report())
        summary = json.loads(process.stdout)
        self.assertEqual((summary["begin"], summary["end"]), (0, STEPS))
        return summary

    # ---- links that break

    def test_connections_cut_at_random(self):
        with self.schedule() as done:
            cluster = self.start_cluster(make_proxy=self.byte_proxies())
            cluster.await_training()
            rng = random.Random(SEED)
            while self.running() and len(done) <= MOST:
                pause, name = rng.uniform(0.01, 0.2), rng.choice(sorted(self.proxies))
                time.sleep(pause)
                self.proxies[name].drop()
                done.append("%.3f s later cut %s" % (pause, name))
            self.assert_exactly_once(generations=1)
            self.assertGreater(self.taken_up(), 5, done)

    def test_replies_swallowed(self):
        with self.schedule() as done:
            cluster = self.start_cluster(make_proxy=self.byte_proxies())
            cluster.await_training()
            rng = random.Random(SEED)
            while self.running() and len(done) <= MOST:
                pause, name = rng.uniform(0.05, 0.2), rng.choice(sorted(self.proxies))
                time.sleep(pause)
                self.proxies[name].blocked = {"to_client"}
                time.sleep(0.05)
                self.proxies[name].drop()
                time.sleep(0.02)
                self.proxies[name].blocked = set()
                done.append("%.3f s later swallowed replies of %s" % (pause, name))
            summary = self.assert_exactly_once(generations=1)
            self.assertGreater(self.taken_up(), 5, done)
            self.assertGreater(summary["answered_again"], 0)

    def test_messages_delayed_reordered_and_duplicated(self):
        flags = ["--delay=0.1", "--duplicate=0.1"]
        with self.schedule():
            self.start_cluster(make_proxy=self.frame_proxies({
                name: flags + ["--seed=%d" % (2 * SEED + i)] for i, name in enumerate(["s0", "s1"])}))
            summary = self.assert_exactly_once(generations=1)
            self.assertGreater(summary["answered_again"], 0)
            self.assertGreater(summary["ignored"], 0)

    def test_all_of_it_and_streams_cut(self):
        flags = ["--delay=0.05", "--duplicate=0.05", "--cut=0.005", "--swallow=0.005"]
        with self.schedule():
            self.start_cluster(make_proxy=self.frame_proxies({
                name: flags + ["--seed=%d" % (2 * SEED + i)] for i, name in enumerate(["s0", "s1"])}))
            summary = self.assert_exactly_once(generations=1)
            self.assertGreater(self.taken_up(), 5)
            self.assertGreater(summary["ignored"], 0)

    # ---- members that are lost at a certain moment

    def start_holding(self, what, step, flags=CALM):
        """s0's proxy holds what it is told to; returns when it does."""
        cluster = self.start_cluster(flags, reconnect=2, make_proxy=self.frame_proxies({
            "s0": ["--hold", what, "--hold_step", str(step)], "s1": []}))
        cluster.await_that(lambda: "holds" in self.frame_proxy["s0"].stdout, "it holds " + what)
        return cluster

    def steps_of(self, name):
        """What a server's traces say of steps that it took, with their generation."""
        lines = [line for file in os.listdir(self.trace) if file.startswith(name + ".")
                 for line in c.read(os.path.join(self.trace, file)).splitlines()]
        return [tuple(map(int, line.split()[1:])) for line in lines if line.startswith("V ")]

    def test_server_killed_before_it_applies(self):
        with self.schedule():
            cluster = self.start_holding("close", 25)
            cluster.kill("s0")
            self.assertEqual(self.steps_of("s0")[-1], (1, 24))
            self.start_a_server("s0")
            self.assert_exactly_once(generations=2)

    def test_server_killed_when_it_has_applied_and_nobody_knows(self):
        with self.schedule():
            cluster = self.start_holding("applied", 25)
            cluster.await_that(lambda: self.steps_of("s0")[-1] == (1, 25), "the step is taken")
            cluster.kill("s0")
            self.start_a_server("s0")
            summary = self.assert_exactly_once(generations=2)
            self.assertGreater(summary["rolled_back"], 0)

    def test_worker_killed_in_its_backward_pass(self):
        with self.schedule():
            cluster = self.start_holding("backward", 30)
            cluster.kill("w1")
            self.start_a_worker("w1")
            self.assert_exactly_once(generations=2)

    def test_worker_comes_back_as_what_it_was(self):
        with self.schedule():
            cluster = self.start_holding("backward", 30, flags=FLAGS)
            stopped = cluster.processes.pop("w1")
            self.addCleanup(stopped.close)
            stopped.send(signal.SIGSTOP)
            cluster.await_line(r"^recovering: .*worker/w1")
            self.start_a_worker("w1")
            self.await_joined(cluster, "w1")
            # What it had to send is of the generation before.
            stopped.send(signal.SIGCONT)
            self.assertEqual(stopped.wait(c.FAULT), 1, stopped.report())
            self.assert_exactly_once(generations=None)


if __name__ == "__main__":
    c.main()
