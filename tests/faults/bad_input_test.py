"""What a user can get wrong is refused at start, with the cause where he looks."""

import os
import shutil
import time

from tests.faults import cluster as c


class BadJobTest(c.TestCase):
    """A coordinator says what is wrong with its job file, and doesn't start."""

    def assert_refused(self, job_text, cause):
        since = time.monotonic()
        cluster = self.new_cluster(job_text)
        cluster.start_coordinator(wait=False)
        self.assert_failed(cluster, since, "^coordinator: .*" + cause)
        described = self.run_program([c.MOECTL, "describe", "--job", cluster.job_path])
        self.assertEqual(described.status, 1, described.report())
        self.assertRegex(described.stderr, cause)

    def test_unknown_field(self):
        self.assert_refused(c.job(edits={"experts: 8": "expert: 8"}),
                            r"job\.textproto:10:.*expert\b")

    def test_wrong_type(self):
        self.assert_refused(c.job(edits={"d_model: 16": "d_model: wide"}),
                            r"job\.textproto:5:.*wide")

    def test_k_exceeds_experts(self):
        self.assert_refused(c.job(edits={"k: 2": "k: 9"}), r"model\.layers\[1\]\.moe\.k\b.*9.*8")

    def test_groups_do_not_divide_experts(self):
        self.assert_refused(c.job(edits={"groups: 4": "groups: 3"}),
                            r"model\.layers\[1\]\.moe\.groups\b.*3.*8")

    def test_waves_do_not_divide_lanes(self):
        self.assert_refused(c.job(edits={"waves: 2": "waves: 3"}), r"training\.waves\b.*3.*4")

    def test_no_such_file(self):
        cluster = self.new_cluster()
        os.remove(cluster.job_path)
        cluster.start_coordinator(wait=False)
        self.assert_failed(cluster, time.monotonic(), "^coordinator: .*job.textproto.*No such file")

    def test_more_workers_than_replicas(self):
        cluster = self.new_cluster()
        cluster.start_coordinator(workers=5, wait=False)
        self.assert_failed(cluster, time.monotonic(), "--workers is 5.*training.replicas is 4")


class TooLargeTest(c.TestCase):
    """A job that the members' memory doesn't hold fails before anything is allocated."""

    def assert_refused(self, cause, job_text=None, server_flags=(), worker_flags=()):
        cluster = self.new_cluster(job_text)
        cluster.start_coordinator()
        since = time.monotonic()
        cluster.start_server("s0", flags=server_flags)
        cluster.start_worker("w0", flags=worker_flags)
        self.assert_failed(cluster, since, cause)

    def test_for_the_machine(self):
        self.assert_refused("needs [0-9.]+ TiB of memory on .*, which has [0-9.]+ [MG]iB for "
                            r"server/s0 [0-9.]+ TiB \(parameters .*: start more servers",
                            c.job(edits={"experts: 8": "experts: 16384",
                                         "hidden: 64": "hidden: 1000000"}))

    def test_for_a_server(self):
        self.assert_refused(r"needs [0-9.]+ MiB \(.*\) of memory on server/s0 \(.*\), "
                            "which has 20.5 MiB: ", server_flags=["--memory_gib", "0.02"])

    def test_for_a_worker(self):
        self.assert_refused(r"needs [0-9.]+ MiB \(.*\) of memory on worker/w0 \(.*\), "
                            "which has 10.2 MiB: ", worker_flags=["--memory_gib=0.01"])


class BadDataTest(c.TestCase):
    def test_missing_corpus(self):
        cluster = self.new_cluster()
        cluster.start_coordinator()
        since = time.monotonic()
        folder = os.path.join(self.root, "nowhere")
        worker = cluster.start_worker("w0", data=folder)
        self.assertEqual(worker.wait(c.FAULT), 1, worker.report())
        self.assertRegex(worker.last_line, "^worker w0: .*%s holds no prepared text" % folder)
        self.assertLess(time.monotonic() - since, c.FAULT)
        # The job waits on for a worker that has the text.
        self.assertIsNone(cluster["coordinator"].status)

    def test_damaged_corpus(self):
        damaged = os.path.join(self.root, "damaged")
        shutil.copytree(self.data, damaged)
        path = os.path.join(damaged, "train.bin")
        with open(path, "r+b") as file:
            file.truncate(os.path.getsize(path) // 2)
        cluster = self.new_cluster()
        cluster.start_coordinator()
        worker = cluster.start_worker("w0", data=damaged)
        self.assertEqual(worker.wait(c.FAULT), 1, worker.report())
        self.assertRegex(worker.last_line, "^worker w0: .*" + path)

    def test_worker_with_other_data(self):
        other = c.prepare_text(os.path.join(self.root, "other"), seed=2)
        cluster = self.new_cluster(c.job(steps=3))
        cluster.start_coordinator(workers=2)
        cluster.start_worker("w0")
        cluster.await_line("waiting for 1 of 1 server and 1 of 2 workers")
        stranger = cluster.start_worker("w1", data=other)
        self.assertEqual(stranger.wait(c.FAULT), 1, stranger.report())
        cause = "worker/w1 reads other data .* than worker/w0 "
        self.assertRegex(stranger.last_line, "^worker w1: .*" + cause)
        self.assertRegex(cluster["coordinator"].stderr, "refused: " + cause)
        # The right data, and the job goes its way.
        del cluster.processes["w1"]
        cluster.start_worker("w1")
        cluster.start_server("s0")
        self.assert_finished(cluster)

    def test_resuming_with_other_data(self):
        other = c.prepare_text(os.path.join(self.root, "another"), seed=3)
        first = self.new_cluster(c.job(steps=2)).start()
        self.assert_finished(first)
        cluster = self.new_cluster(c.job(steps=4), checkpoint_dir=first.checkpoint_dir)
        cluster.start_coordinator(flags=["--resume"])
        worker = cluster.start_worker("w0", data=other)
        self.assertEqual(worker.wait(c.FAULT), 1, worker.report())
        self.assertRegex(worker.last_line, "other data .* than the job was trained on")


class ContextsTest(c.TestCase):
    """Contexts are of an evaluation (moectl experts --top-contexts)."""

    def test_of_a_run_that_trains(self):
        cluster = self.new_cluster()
        cluster.start_coordinator()
        cluster.start_server("s0")
        path = os.path.join(cluster.folder, "contexts.json")
        since = time.monotonic()
        cluster.start_worker("w0", flags=["--contexts_file", path])
        self.assert_failed(cluster, since, "--contexts_file is for an evaluation, .* trains")

    def test_without_a_file(self):
        worker = self.run_program([c.WORKER, "--data", self.data, "--contexts_layer", 1])
        self.assertEqual(worker.status, 2, worker.report())
        self.assertRegex(worker.stderr, "--contexts_layer .* --contexts_file, which is missing")


class TakenPlaceTest(c.TestCase):
    def test_taken_port_of_a_coordinator(self):
        first = self.new_cluster()
        first.start_coordinator()
        second = self.new_cluster()
        second.start_coordinator(listen=first.address, wait=False)
        self.assert_failed(second, time.monotonic(),
                           "^coordinator: .*%s.*(in use|taken)" % first.address)

    def test_taken_port_of_a_server(self):
        cluster = self.new_cluster()
        cluster.start_coordinator()
        server = cluster.start_server("s0", flags=["--listen", cluster.address])
        self.assertEqual(server.wait(c.FAULT), 1, server.report())
        self.assertRegex(server.last_line,
                         "^expert_server: .*%s.*(in use|taken)" % cluster.address)

    def test_taken_name(self):
        cluster = self.new_cluster()
        cluster.start_coordinator(workers=2)
        first = cluster.start_worker("w0")
        cluster.await_line("1 of 2 workers")
        del cluster.processes["w0"]
        self.addCleanup(first.close)
        second = cluster.start_worker("w0")
        self.assertEqual(second.wait(c.FAULT), 1, second.report())
        self.assertRegex(second.last_line, r"worker/w0 \(.* pid %d\) lives" % first.pid)

    def test_taken_state_folder(self):
        first = self.new_cluster()
        first.start_coordinator()
        second = self.new_cluster(checkpoint_dir=first.checkpoint_dir)
        second.start_coordinator(
            flags=["--state_dir", os.path.join(first.folder, "state")], wait=False)
        self.assert_failed(second, time.monotonic(), "^coordinator: .*%s/state" % first.folder)

    def test_checkpoints_of_another_run(self):
        first = self.new_cluster(c.job(steps=2)).start()
        self.assert_finished(first)
        second = self.new_cluster(c.job(steps=2), checkpoint_dir=first.checkpoint_dir)
        second.start_coordinator(wait=False)
        self.assert_failed(second, time.monotonic(),
                           "%s already holds checkpoints .*--resume" % first.checkpoint_dir)

    def test_one_server_too_many(self):
        cluster = self.new_cluster().start()
        cluster.await_training()
        late = cluster.start_server("s1")
        self.assertEqual(late.wait(c.FAULT), 1, late.report())
        self.assertRegex(late.last_line, "server/s1 comes too late: .* has server/s0")


class NumericsTest(c.TestCase):
    # A kernel without AVX: no machine that can run the programs chooses it by itself.
    OTHER = {"OPENBLAS_CORETYPE": "Prescott"}

    def test_mixed_numerics_are_refused(self):
        cluster = self.new_cluster()
        cluster.start_coordinator()
        cluster.start_server("s0")
        cluster.await_line("waiting for 1 of 1 worker$")
        worker = cluster.start_worker("w0", env=self.OTHER)
        self.assertEqual(worker.wait(c.FAULT), 1, worker.report())
        cause = (r"worker/w0 \(.*Prescott.*\) computes other bits than server/s0 \(.*\); "
                 "use hosts of one kind, or set allow_mixed_numerics")
        self.assertRegex(worker.last_line, "^worker w0: .*" + cause)
        self.assertRegex(cluster["coordinator"].stderr, "refused: " + cause)

    def test_mixed_numerics_where_the_job_allows_them(self):
        cluster = self.new_cluster(c.job(steps=2) + "allow_mixed_numerics: true\n")
        cluster.start_coordinator()
        cluster.start_server("s0")
        cluster.start_worker("w0", env=self.OTHER)
        self.assert_finished(cluster)

    def test_diverging_job_names_step_and_layer(self):
        cluster = self.new_cluster(
            c.job(edits={
                "adam {}": "sgd {}",
                "base_rate: 0.01": "base_rate: 1e30",
                "inverse_sqrt { warmup_steps: 10 }": "constant {}",
            }))
        since = time.monotonic()
        cluster.start(servers=2, workers=2)
        self.assert_failed(cluster, since, r"\bstep [0-9]+ .*\blayer [0-9]+\b")


if __name__ == "__main__":
    c.main()
