"""A checkpoint's files on a disk that fails, and in the hands of processes that die at any moment.

SWITCHYARD_ALL_CRASHES=1: every crash and every state of the disk instead of a sample of them.
"""

import errno
import os
import random
import re
import signal
import time

from tests.faults import cluster as c
from tests.faults import disk_model
from tests.faults.undisturbed import FLAGS

SHIM = "tests/faults/disk_shim.so"
STEPS = 4
EVERY = 2
ALL = os.environ.get("SWITCHYARD_ALL_CRASHES") == "1"
# Few files, so that crashes at all of them take minutes.
JOB = c.job(steps=STEPS, every_steps=EVERY, edits={
    "hidden: 64 groups: 4": "hidden: 64 groups: 1",
    "replicas: 4 waves: 2 lanes: 4 unroll: 8": "replicas: 1 waves: 1 lanes: 4 unroll: 8 dense_shards: 1",
})


def shim(cluster, **settings):
    """The environment of a process with a disk as disk_shim.cc describes."""
    env = {"LD_PRELOAD": os.path.abspath(SHIM),
           "DISK_SHIM_FOLDERS": "%s:%s" % (cluster.checkpoint_dir,
                                           os.path.join(cluster.folder, "state"))}
    env.update({"DISK_SHIM_" + name.upper(): str(value) for name, value in settings.items()})
    return env


class DiskCase(c.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        run = c.Cluster(os.path.join(cls.root, "undisturbed"), cls.data, JOB)
        cls.addClassCleanup(run.close)
        run.start()
        run.wait_all(c.PATIENCE)
        cls.undisturbed = run.result
        assert cls.undisturbed["phase"] == "FINISHED", run.report()

    def begin(self, cluster, envs, flags=()):
        """A coordinator, a server and a worker at once; envs: by name."""
        cluster.address = c.free_address()
        self.start_again(cluster, "coordinator", env=envs.get("coordinator"), flags=flags)
        for name in ["s0", "w0"]:
            self.start_again(cluster, name, env=envs.get(name))

    def start_again(self, cluster, name, env=None, flags=()):
        if name == "coordinator":
            cluster.start_coordinator(listen=cluster.address, wait=False, env=env,
                                      flags=FLAGS + ["--recoveries=100"] + list(flags))
        else:
            (cluster.start_server if name[0] == "s" else cluster.start_worker)(name, env=env)

    def assert_undisturbed(self, cluster):
        result = self.assert_finished(cluster)
        self.assertEqual(result["digest"], self.undisturbed["digest"], cluster.report())
        self.assertEqual(result["test_perplexity"], self.undisturbed["test_perplexity"])
        left = [path for path in disk_model.read_tree(cluster.folder)
                if ".generation-" in path or ".tmp-" in path]
        self.assertEqual(left, [])


class CrashTest(DiskCase):
    """SIGKILL before each call that changes the disk, and in the midst of each write."""

    def crash(self, name, settings):
        """False if the process ended before it came to that."""
        cluster = c.Cluster(self.new_folder(), self.data, JOB)
        try:
            self.begin(cluster, {name: shim(cluster, **settings)})
            process = cluster[name]
            self.assertIsNotNone(process.wait(c.PATIENCE), cluster.report())
            if process.status == 0:
                self.assert_undisturbed(cluster)
                return False
            self.assertEqual(process.status, -signal.SIGKILL, cluster.report())
            self.assert_whole(cluster)
            del cluster.processes[name]
            self.start_again(cluster, name)
            self.assert_undisturbed(cluster)
            return True
        finally:
            cluster.close()

    def assert_whole(self, cluster):
        for _ in range(100):
            try:
                state = disk_model.read_tree(cluster.folder)
                break
            except FileNotFoundError:  # what others rename or remove meanwhile
                pass
        disk_model.checkpoints(state, "checkpoints")
        disk_model.stored(state, "state/state")

    def changes(self, name):
        """What a process changes on the disk in a run, in its order."""
        cluster = self.new_cluster(JOB)
        log = os.path.join(cluster.folder, "log")
        self.begin(cluster, {name: shim(cluster, log=log)})
        self.assert_undisturbed(cluster)
        return disk_model.read_log(log)

    def crash_everywhere(self, name, sample):
        changes = self.changes(name)
        rounds = [{"kill": n + 1} for n in range(len(changes))]
        rounds += [{"kill": n + 1, "torn": 1} for n, change in enumerate(changes)
                   if change["call"] == "write"]
        if not ALL:
            rounds = random.Random(len(changes)).sample(rounds, sample)
        crashes = 0
        for settings in rounds:
            with self.subTest(process=name, **settings):
                crashes += self.crash(name, settings)
        # What a coordinator does depends a little on time.
        self.assertGreater(crashes, 0.8 * len(rounds))
        print("%s: %d crashes at the %d changes of its disk" % (name, crashes, len(changes)))
        # Beyond the last one.
        self.assertFalse(self.crash(name, {"kill": 2 * len(changes)}))

    def test_server(self):
        self.crash_everywhere("s0", sample=12)

    def test_coordinator(self):
        self.crash_everywhere("coordinator", sample=20)


if __name__ == "__main__":
    c.main()
