"""With two copies of each shard a lost server costs no step: the generation goes on with the other copies,
and the run ends with the bits of one that has one copy and isn't disturbed. Only what takes both copies of a
shard is a loss.

SEED=N kills others, at other times; a failure prints its own.
"""

import json
import os
import random
import re
import signal
import sys
import time

from tests.faults import cluster as c
from tests.faults.exactly_once_test import FRAME_PROXY, JOB
from tests.faults.exactly_once_test import STEPS as FEW_STEPS
from tests.faults.slow_disk import SlowDisk
from tests.faults.undisturbed import EVERY, FLAGS, SERVER_FLAGS, STEPS, UndisturbedCase

SEED = int(os.environ.get("SEED", "1"))
COPIES = ["--copies=2"]
SERVERS = ["s0", "s1", "s2"]


class StandbyCase(UndisturbedCase):
    def start_cluster(self, servers=3, flags=(), server_flags=(), env=None):
        """With two copies; each server leaves traces. env: of s0."""
        cluster = self.new_cluster(self.job)
        self.trace = os.path.join(cluster.folder, "trace")
        self.server_flags = ["--trace_dir", self.trace] + list(server_flags)
        cluster.start_coordinator(servers, 2, flags=FLAGS + COPIES + list(flags))
        for i in range(servers):
            self.start_one(cluster, "s%d" % i, env=env if i == 0 else None)
        for name in ["w0", "w1"]:
            self.start_worker(cluster, name)
        return cluster

    def start_one(self, cluster, name, flags=(), **options):
        return cluster.start_server(name, SERVER_FLAGS + self.server_flags + list(flags),
                                    **options)

    def status(self, cluster, command="status"):
        process = self.run_program([c.MOECTL, command, "--json", "--coordinator", cluster.address])
        self.assertEqual(process.status, 0, process.report())
        return json.loads(process.stdout)

    def await_step(self, cluster, step):
        cluster.await_that(lambda: int(self.status(cluster)["progress"].get("step", 0)) >= step,
                           "step %d" % step)

    def await_going_on(self, cluster, name):
        cluster.await_line("^going on without server/%s: " % name)

    def assert_no_step_lost(self, cluster, steps, generations=1):
        """The digest is that of the undisturbed run, nothing was recovered, and the traces prove that each
        step was taken once. generations: by handovers."""
        self.assert_undisturbed(cluster, generations=1)
        process = self.run_program([c.MOECTL, "trace", "--dir", self.trace, "--steps", steps, "--json"])
        self.assertEqual(process.status, 0, process.report())
        summary = json.loads(process.stdout)
        self.assertEqual((summary["begin"], summary["end"]), (0, steps))
        self.assertEqual(summary["rolled_back"], 0)
        self.assertEqual(summary["generations"], generations, cluster["coordinator"].report())


class StandbyTest(StandbyCase):
    # All checkpoints, to be compared.
    job = c.job(steps=STEPS, every_steps=EVERY,
                edits={"checkpointing {": "checkpointing { keep_last: 1000"})

    def manifest(self, folder, step):
        with open(os.path.join(folder, "step-%08d" % step, "manifest.json")) as file:
            manifest = json.load(file)
        return {
            "digest": manifest["digest"],
            "validation_perplexity": manifest["validation_perplexity"],
            "shards": {shard["shard"]: shard for shard in manifest["shards"]},
        }

    def assert_same_checkpoints(self, cluster):
        """All of them, with no file more."""
        for step in range(EVERY, STEPS + 1, EVERY):
            manifest = self.manifest(cluster.checkpoint_dir, step)
            self.assertEqual(manifest, self.manifest(os.path.dirname(self.undisturbed["checkpoint"]), step))
            files = {shard["file"] for shard in manifest["shards"].values()}
            self.assertEqual(set(os.listdir(os.path.join(cluster.checkpoint_dir, "step-%08d" % step))),
                             files | {"manifest.json"})

    def test_undisturbed(self):
        cluster = self.start_cluster()
        self.await_checkpoint(cluster)
        status = self.status(cluster)
        self.assertEqual(status["state"].get("without_standby", ""), "")
        for shard in status["state"]["placement"]["shards"]:
            self.assertNotIn(shard["standby"], ["", shard["server"]])
        # Asked of a job that runs, each expert counts once.
        layers = self.status(cluster, "experts")["layers"]
        self.assertEqual([layer["experts"] for layer in layers], [8])
        self.assert_no_step_lost(cluster, STEPS)
        self.assert_same_checkpoints(cluster)

    def test_killed_at_any_step(self):
        rng = random.Random(SEED)
        for round in range(4):
            name, step = rng.choice(SERVERS), rng.randrange(1, STEPS - 100)
            with self.subTest(seed=SEED, round=round, name=name, step=step):
                cluster = self.start_cluster()
                self.await_step(cluster, step)
                time.sleep(rng.uniform(0, 0.02))
                cluster.kill(name)
                self.await_going_on(cluster, name)
                standby = self.status(cluster)["state"]["without_standby"]
                self.assertRegex(standby, r"server/%s .*; \d+ of \d+ shards have no second copy until "
                                 "another server joins" % name)
                self.assert_no_step_lost(cluster, STEPS)
                self.assert_same_checkpoints(cluster)

    def start_with_slow_disk(self):
        """s0's disk is slow when it is told so."""
        folder = self.new_folder()
        os.makedirs(folder)
        self.disk = SlowDisk(folder)
        self.addCleanup(self.disk.recover)
        cluster = self.start_cluster(env=self.disk.env)
        self.await_checkpoint(cluster)
        self.disk.hang()

        def under_way():
            cut = self.status(cluster).get("cut")
            return cut and re.fullmatch("server/s0 to write .*", cut["waiting_for"])

        cluster.await_that(under_way, "a checkpoint waits for s0 alone")
        return cluster

    def test_killed_while_it_writes_a_checkpoint(self):
        cluster = self.start_with_slow_disk()
        cluster.kill("s0")
        self.assert_no_step_lost(cluster, STEPS)
        self.assert_same_checkpoints(cluster)

    def test_killed_when_it_has_written_its_part_of_a_checkpoint(self):
        cluster = self.start_with_slow_disk()
        cluster.kill("s1")
        self.await_going_on(cluster, "s1")
        self.disk.recover()
        self.assert_no_step_lost(cluster, STEPS)
        self.assert_same_checkpoints(cluster)

    def test_stopped_past_its_lease_while_it_writes_a_checkpoint(self):
        cluster = self.start_with_slow_disk()
        cluster["s0"].send(signal.SIGSTOP)
        self.await_going_on(cluster, "s0")
        cut = len(cluster.checkpoints())
        cluster.await_that(lambda: len(cluster.checkpoints()) > cut, "the next checkpoint")
        # It goes on with files of a folder that has another name by now, or is gone.
        self.disk.recover()
        cluster["s0"].send(signal.SIGCONT)
        cluster.await_line("^scaled to 3 servers and 2 workers, with second copies of all shards again$")
        self.assert_no_step_lost(cluster, STEPS, generations=2)
        self.assert_same_checkpoints(cluster)

    def test_stopped_past_its_lease(self):
        cluster = self.start_cluster()
        self.await_checkpoint(cluster)
        cluster["s1"].send(signal.SIGSTOP)
        cluster.await_line(r"^going on without server/s1: .*no heartbeat")
        cluster["s1"].send(signal.SIGCONT)
        # It is one that joins, and gets second copies.
        cluster.await_line("^scaled to 3 servers and 2 workers, with second copies of all shards again$")
        cluster.await_line("^training small on 3 servers")
        self.assertEqual(self.status(cluster)["state"].get("without_standby", ""), "")
        self.assert_no_step_lost(cluster, STEPS, generations=2)

    def test_one_after_the_other_and_each_comes_back(self):
        cluster = self.start_cluster()
        self.await_checkpoint(cluster)
        for round, name in enumerate(["s1", "s0", "s2"]):
            cluster.kill(name)
            self.await_going_on(cluster, name)
            self.start_one(cluster, name)
            cluster.await_that(
                lambda: len(re.findall("^training small on 3 servers", cluster["coordinator"].stdout,
                                       re.M)) == round + 2, "second copies are back")
        self.assert_no_step_lost(cluster, STEPS, generations=4)

    def test_told_to_stop(self):
        cluster = self.start_cluster()
        self.await_checkpoint(cluster)
        leaving = cluster.processes.pop("s2")
        self.addCleanup(leaving.close)
        leaving.send(signal.SIGTERM)
        self.await_going_on(cluster, "s2")
        self.assert_no_step_lost(cluster, STEPS)

    def test_both_copies_lost(self):
        cluster = self.start_cluster(flags=["--rejoin_timeout_s=1"])
        self.await_checkpoint(cluster)
        cluster.kill("s1")
        self.await_going_on(cluster, "s1")
        cluster.kill("s2")
        cluster.await_line("^recovering: ")
        cluster.await_line("^going on without 2 of 3 servers")
        cluster.await_line("^training small on 1 server ")
        self.assertRegex(self.status(cluster)["state"]["without_standby"],
                         r"^(\d+) of \1 shards have no second copy until another server joins$")
        self.assert_undisturbed(cluster, generations=2)

    def test_coordinator_is_started_again(self):
        cluster = self.start_cluster()
        self.await_checkpoint(cluster)
        cluster.kill("s1")
        self.await_going_on(cluster, "s1")
        cluster.kill("coordinator")
        cluster.start_coordinator(3, 2, listen=cluster.address, flags=FLAGS + COPIES)
        cluster.await_line("^generation 1 goes on: all are back$")
        # It still knows that there is a place, and what the newcomer is to have.
        self.start_one(cluster, "s1")
        cluster.await_line("^scaled to 3 servers and 2 workers, with second copies of all shards again$")
        self.assert_no_step_lost(cluster, STEPS, generations=2)

    def test_server_and_coordinator_lost_together(self):
        cluster = self.start_cluster()
        self.await_checkpoint(cluster)
        cluster.kill("coordinator")
        cluster.kill("s1")
        time.sleep(1)
        cluster.start_coordinator(3, 2, listen=cluster.address, flags=FLAGS + COPIES)
        self.await_going_on(cluster, "s1")
        self.assert_no_step_lost(cluster, STEPS)

    def test_server_cut_off_from_workers(self):
        cluster = self.start_with_proxies(servers=3, flags=COPIES)
        self.proxies["s1"].blocked = {"to_target", "to_client"}
        self.await_going_on(cluster, "s1")
        self.proxies["s1"].blocked = set()
        cluster.await_line("^scaled to 3 servers and 2 workers, with second copies of all shards again$")
        self.assert_undisturbed(cluster, generations=1)

    def test_worker_lost(self):
        cluster = self.start_cluster()
        self.await_checkpoint(cluster)
        cluster.kill("w1")
        cluster.await_line("^recovering: ")
        self.start_worker(cluster, "w1")
        self.assert_undisturbed(cluster, generations=2)

    def test_refused(self):
        cluster = self.new_cluster(self.job)
        cluster.start_coordinator(1, 2, flags=COPIES, wait=False)
        cluster.wait_all(c.FAULT)
        self.assertNotEqual(cluster["coordinator"].status, 0)
        self.assertIn("--servers must be at least 2, not 1", cluster["coordinator"].stderr)

    def test_without_memory_for_both_copies(self):
        # Enough for one, as the first says.
        for copies, ends in [("1", 0), ("2", 1)]:
            cluster = self.new_cluster(c.job(steps=2, edits={"hidden: 64": "hidden: 65536"}))
            cluster.start_coordinator(2, 1, flags=["--copies=" + copies])
            for name in ["s0", "s1"]:
                cluster.start_server(name, ["--memory_gib=0.38"])
            cluster.start_worker("w0", ["--memory_gib=4"])
            cluster.wait_all(c.PATIENCE)
            self.assertEqual(cluster["coordinator"].status, ends, cluster.report())
        self.assertRegex(cluster.result["failure"], r"with 2 copies of each shard \(--copies\): .* needs "
                         r"[\d.]+ MiB .* which has [\d.]+ MiB")


class EverythingTest(StandbyCase):
    """Tables, hierarchical and recurrent mixtures, clipping."""
    job = JOB

    def start_holding(self, what, step):
        """s0's proxy holds what it is told to; returns when it does."""
        folder = self.new_folder()
        os.makedirs(folder)
        target, port_file = os.path.join(folder, "target"), os.path.join(folder, "proxy")
        proxy = c.Process("proxy", [FRAME_PROXY, "--port_file", port_file, "--target_file", target,
                                    "--hold", what, "--hold_step", step], folder)
        self.addCleanup(proxy.close)
        cluster = self.new_cluster(self.job)
        cluster.start_coordinator(3, 2, flags=["--heartbeat_ms=200", "--lease_ms=15000"] + COPIES)
        cluster.await_that(lambda: os.path.exists(port_file), "the proxy listens")
        self.trace = os.path.join(cluster.folder, "trace")
        self.server_flags = ["--trace_dir", self.trace]
        cluster.start_server("s0", self.server_flags + ["--advertise", c.read(port_file).strip(),
                                                        "--port_file", target])
        for name in ["s1", "s2"]:
            cluster.start_server(name, self.server_flags)
        for name in ["w0", "w1"]:
            cluster.start_worker(name)
        cluster.await_that(lambda: "holds" in proxy.stdout, "it holds " + what)
        return cluster

    def test_killed_at_any_step(self):
        rng = random.Random(SEED)
        for round in range(3):
            name, step = rng.choice(SERVERS), rng.randrange(1, FEW_STEPS - 10)
            with self.subTest(seed=SEED, round=round, name=name, step=step):
                cluster = self.start_cluster()
                self.await_step(cluster, step)
                time.sleep(rng.uniform(0, 0.1))
                cluster.kill(name)
                self.assert_no_step_lost(cluster, FEW_STEPS)

    def test_killed_at_a_certain_moment(self):
        for what, step in [("backward", 30), ("close", 25), ("applied", 25), ("evaluation", 3)]:
            with self.subTest(what=what):
                cluster = self.start_holding(what, step)
                cluster.kill("s0")
                self.await_going_on(cluster, "s0")
                self.assert_no_step_lost(cluster, FEW_STEPS)

    def test_evaluation_alone(self):
        digest = self.undisturbed["digest"]
        cluster = self.new_cluster(self.job)
        checkpoint = self.undisturbed["checkpoint"]
        command = [c.COORDINATOR, "--evaluate", "test", "--checkpoint", checkpoint, "--servers", "3",
                   "--workers", "1", "--listen", "127.0.0.1:0", "--port_file",
                   os.path.join(cluster.folder, "port"), "--result_json", cluster.result_path]
        cluster._launch("coordinator", command + COPIES)
        cluster.await_that(lambda: os.path.exists(os.path.join(cluster.folder, "port")), "it listens")
        cluster.address = c.read(os.path.join(cluster.folder, "port")).strip()
        for name in SERVERS:
            cluster.start_server(name)
        cluster.start_worker("w0")
        result = self.assert_finished(cluster)
        self.assertEqual(result["digest"], digest)
        self.assertEqual(result["test_perplexity"], self.undisturbed["test_perplexity"])


if __name__ == "__main__":
    print("SEED=%d" % SEED, file=sys.stderr)
    c.main()
