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
from tests.faults.failing_disk import shim
from tests.faults.undisturbed import FLAGS

STEPS = 4
EVERY = 2
ALL = os.environ.get("SWITCHYARD_ALL_CRASHES") == "1"
# Few files, so that crashes at all of them take minutes.
JOB = c.job(steps=STEPS, every_steps=EVERY, edits={
    "hidden: 64 groups: 4": "hidden: 64 groups: 1",
    "replicas: 4 waves: 2 lanes: 4 unroll: 8": "replicas: 1 waves: 1 lanes: 4 unroll: 8 dense_shards: 1",
})


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
            if self.assert_whole(cluster) == "PHASE_FINISHED":
                # Nothing is left to do but for the members to hear of it, which they can't any more.
                self.assert_digest(cluster)
                return True
            del cluster.processes[name]
            self.start_again(cluster, name)
            self.assert_undisturbed(cluster)
            return True
        finally:
            cluster.close()

    def assert_whole(self, cluster):
        """The job's phase as the coordinator has recorded it."""
        for _ in range(100):
            try:
                state = disk_model.read_tree(cluster.folder)
                break
            except FileNotFoundError:  # what others rename or remove meanwhile
                pass
        disk_model.checkpoints(state, "checkpoints")
        return disk_model.stored(state, "state/state").get("job/phase")

    def assert_digest(self, cluster):
        printed = self.run_program([c.MOECTL, "digest", "--checkpoint", cluster.checkpoint_dir])
        self.assertEqual(printed.stdout.strip(), self.undisturbed["digest"], printed.report())

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


class PowerCutTest(DiskCase):
    """Whatever of what wasn't synced is lost, what is left must do."""

    def record(self):
        """A run of two servers and its log; where in it each checkpoint had been announced."""
        cluster = self.new_cluster(JOB.replace("groups: 1", "groups: 2"))
        os.makedirs(cluster.checkpoint_dir)
        os.makedirs(os.path.join(cluster.folder, "state"))
        log = self.new_folder() + ".log"
        settings = {"env": shim(cluster, log=log)}
        cluster.start_coordinator(servers=2, **settings)
        cluster.start_server("s0", **settings)
        cluster.start_server("s1", **settings)
        cluster.start_worker("w0")
        announced = []
        while cluster["coordinator"].status is None:
            steps = re.findall(r"^checkpoint .*step-0*([0-9]+) ", cluster["coordinator"].stdout, re.M)
            if len(steps) > len(announced):
                announced.append((len(c.read(log).splitlines()), int(steps[len(announced)])))
            time.sleep(0.001)
        result = self.assert_finished(cluster)
        return cluster, disk_model.read_log(log), announced, result

    def examine(self, root, log, announced, first_wrong=False):
        """(states that the disk may have been in, each with the step that it must hold; what is wrong)."""
        disk = disk_model.Disk(root)
        for name in ["checkpoints", "state"]:
            disk.apply({"call": "mkdir", "path": os.path.join(root, name)})
        disk.apply({"call": "fsync", "path": root})
        states, wrong = {}, []
        stored, renamed = {}, None
        for done, line in enumerate(log + [None]):
            if renamed and line and line["pid"] == renamed[0] and not (
                    line["call"] == "fsync" and line["path"].endswith("/state")):
                # It goes on to something else, so it has confirmed the change.
                stored, renamed = renamed[1], None
            sure = max([step for after, step in announced if after <= done], default=0)
            for state in disk.after_power_cut():
                key = disk_model.key(state)
                if key in states and states[key][1] >= sure:
                    continue
                states[key] = (state, sure)
                try:
                    steps = disk_model.checkpoints(state, "checkpoints")
                    assert max(steps, default=0) >= sure, "step %d is gone" % sure
                    kept = disk_model.stored(state, "state/state")
                    # What the store had confirmed is in it.
                    assert stored.keys() <= kept.keys(), "of the store is gone: %s" % stored
                    assert int(kept.get("job/generation", 0)) >= int(
                        stored.get("job/generation", 0)), "an older generation"
                except AssertionError as error:
                    wrong.append("before %s: %s" % (line, error))
                    if first_wrong:
                        return disk, list(states.values()), wrong
            if line is not None:
                disk.apply(line)
                if line.get("to", "").endswith("/state/state"):
                    renamed = line["pid"], disk_model.stored(disk.now(), "state/state")
        return disk, list(states.values()), wrong

    def test_every_state_of_the_disk_will_do(self):
        cluster, log, announced, result = self.record()
        self.assertEqual([step for _, step in announced], list(range(EVERY, STEPS + 1, EVERY)))
        disk, states, wrong = self.examine(cluster.folder, log, announced)
        self.assertEqual(wrong, [])
        # Nothing was missed: with everything done, it is the disk that there is.
        there = disk_model.read_tree(cluster.folder)
        self.assertEqual(disk.now(), {path: content for path, content in there.items()
                                      if path.split("/")[0] in ("checkpoints", "state")})
        self.resume(states, cluster, result)

    def test_no_sync_could_be_left_out(self):
        cluster, log, announced, _ = self.record()
        for what, pattern in {
            "a shard's file": r"/step-00000004.generation-1/.*safetensors.tmp-",
            "a cut's folder after its files": r"/step-00000004.generation-1$",
            "a manifest": "manifest.json.tmp-",
            "the folder of checkpoints": "/checkpoints$",
            "a checkpoint that is removed": "/step-00000002$",
            "the store": "/state/state.tmp-",
            "the store's folder": "/state$",
        }.items():
            with self.subTest(without=what):
                without = [line for line in log
                           if line["call"] != "fsync" or not re.search(pattern, line["path"])]
                self.assertLess(len(without), len(log))
                # Places in the shorter log.
                kept = {id(line) for line in without}
                moved = [(sum(id(line) in kept for line in log[:after]), step)
                         for after, step in announced]
                _, _, wrong = self.examine(cluster.folder, without, moved, first_wrong=True)
                self.assertNotEqual(wrong, [])

    def resume(self, states, recorded, result):
        """A coordinator goes on from each, with the same command; some to the end."""
        rng = random.Random(len(states))
        loaded = states if ALL else rng.sample(states, 60)
        to_the_end = {id(state) for state in rng.sample(loaded, len(loaded) // (5 if ALL else 10))}
        for entry in loaded:
            state, sure = entry
            again = c.Cluster(self.new_folder(), self.data, c.read(recorded.job_path))
            try:
                disk_model.make(state, os.path.join(again.folder, "disk"))
                for name in ["checkpoints", "state"]:
                    os.makedirs(os.path.join(again.folder, "disk", name), exist_ok=True)
                    os.rename(os.path.join(again.folder, "disk", name),
                              os.path.join(again.folder, name))
                known = disk_model.checkpoints(state, "checkpoints")
                # A job that was under way goes on by itself.
                stored = disk_model.stored(state, "state/state")
                interrupted = stored.get("job/servers", "0") != "0" and \
                    stored["job/phase"] != "PHASE_FINISHED"
                flags = ["--resume"] if known and not interrupted else []
                again.start_coordinator(servers=2, flags=flags)
                if known:
                    again.await_line("^starting from .*/step-%08d" % known[-1])
                if id(entry) in to_the_end:
                    for i in range(2):
                        again.start_server("s%d" % i)
                    again.start_worker("w0")
                    self.assertEqual(self.assert_finished(again)["digest"], result["digest"])
            finally:
                again.close()
        print("%d states of the disk; a coordinator went on from %d, a job from %d to its end" %
              (len(states), len(loaded), len(to_the_end)))


class FailingDiskTest(DiskCase):
    """A call that fails is an error with the file's name and the cause, and no checkpoint."""

    def start_with(self, name, call, number, part="", cut=EVERY * 2):
        """Fails from the second cut on."""
        cluster = self.new_cluster(JOB)
        self.begin(cluster, {name: shim(
            cluster, fail="%s:%d:step-%08d%s" % (call, number, cut, part))})
        return cluster

    def assert_resumes(self, cluster, begun):
        again = self.new_cluster(JOB, checkpoint_dir=cluster.checkpoint_dir)
        again.start(servers=2, flags=["--resume"])
        result = self.assert_finished(again)
        self.assertIn("starting from %s/step-%08d" % (cluster.checkpoint_dir, begun),
                      again["coordinator"].stdout)
        self.assertEqual(result["digest"], self.undisturbed["digest"])

    def test_at_a_checkpoint(self):
        cut = "step-0000000%d.generation-1" % (2 * EVERY)
        for name, call, number, cause in [
            ("s0", "mkdir", errno.ENOSPC, "cannot create folder .*/%s: No space left" % cut),
            ("s0", "open", errno.ENOSPC, "cannot create .*/%s/.*safetensors: No space left" % cut),
            ("s0", "write", errno.EIO, "cannot write .*/%s/.*safetensors: Input/output error" % cut),
            ("s0", "write", errno.ENOSPC, "cannot write .*/%s/.*safetensors: No space left" % cut),
            ("s0", "fsync", errno.EIO, "cannot write .*/%s/.*safetensors: Input/output error" % cut),
            ("s0", "rename", errno.EIO, "cannot write .*/%s/.*safetensors: Input/output error" % cut),
            ("coordinator", "open", errno.ENOSPC, "cannot create .*/%s/manifest.json: No space" % cut),
            ("coordinator", "write", errno.EIO, "cannot write .*/%s/manifest.json: Input" % cut),
            ("coordinator", "fsync", errno.EIO, "cannot write .*/%s/manifest.json: Input" % cut),
            # The first one gives the manifest its name.
            ("coordinator", "rename", errno.EIO, "cannot write .*/%s/manifest.json: Input" % cut),
        ]:
            with self.subTest(process=name, call=call, error=errno.errorcode[number]):
                cluster = self.start_with(name, call, number)
                cluster.await_line("^checkpoint ")
                self.assert_failed(cluster, time.monotonic(), cause)
                self.assertEqual(cluster.checkpoints(), [EVERY])
                self.assert_resumes(cluster, EVERY)

    def test_a_cut_cannot_get_its_name(self):
        cluster = self.new_cluster(JOB)
        self.begin(cluster, {"coordinator": shim(
            cluster, fail="rename:%d:step-0000000%d.generation-1$" % (errno.EIO, 2 * EVERY))})
        cluster.await_line("^checkpoint ")
        self.assert_failed(cluster, time.monotonic(), "cannot rename to .*/step-0000000%d .*"
                           "step-0000000%d.generation-1: Input/output" % (2 * EVERY, 2 * EVERY))
        self.assertEqual(cluster.checkpoints(), [EVERY])
        self.assert_resumes(cluster, EVERY)

    def test_the_coordinators_state(self):
        for call, number, said in [("write", errno.EIO, "write"), ("open", errno.ENOSPC, "create"),
                                   ("fsync", errno.EIO, "write"), ("rename", errno.EIO, "write")]:
            with self.subTest(call=call):
                cluster = self.new_cluster(JOB)
                cluster.start_coordinator(wait=False, env=shim(
                    cluster, fail="%s:%d:/state/state.tmp" % (call, number)))
                coordinator = cluster["coordinator"]
                self.assertEqual(coordinator.wait(c.FAULT), 1, coordinator.report())
                self.assertRegex(coordinator.last_line, "cannot %s .*/state/state: %s" % (
                    said, os.strerror(number)))

    def restored(self, settings, name):
        """A job that is to go on from a checkpoint, with a process whose disk is that."""
        first = self.new_cluster(JOB.replace("steps: %d" % STEPS, "steps: %d" % EVERY)).start()
        self.assert_finished(first)
        again = self.new_cluster(JOB, checkpoint_dir=first.checkpoint_dir)
        self.begin(again, {name: shim(again, **settings)}, flags=["--resume"])
        return again

    def test_reading_fails(self):
        for name, part, cause in [
            ("coordinator", "manifest.json", "cannot read .*/manifest.json: Input/output error"),
            ("coordinator", "layer1-group0", "cannot read .*/layer1-group0.safetensors: Input/output"),
            ("s0", "manifest.json", "s0 can't load its shards: cannot read .*/manifest.json: Input/"),
            ("s0", "dense-0", "s0 can't load its shards: .*cannot read .*/dense-0.safetensors: Input/"),
            ("s0", "layer1-group0", "s0 can't load its shards: .*/layer1-group0.safetensors: Input/"),
            ("s0", "replica-0", "s0 can't load its shards: .*/replica-0.safetensors: Input/output"),
        ]:
            with self.subTest(process=name, file=part):
                cluster = self.restored({"fail": "read:%d:%s" % (errno.EIO, part)}, name)
                self.assert_cause(cluster, name, cause)
                self.assertEqual(cluster.checkpoints(), [EVERY])
                for process in cluster.processes.values():
                    process.close()
                self.assert_resumes(cluster, EVERY)

    def test_flipped_bits_on_their_way_to_a_server(self):
        for part in ["dense-0", "layer1-group0", "replica-0"]:
            with self.subTest(file=part):
                cluster = self.restored({"flip": part + ".safetensors"}, "s0")
                self.assert_cause(cluster, "s0", "s0 can't load its shards: .*/%s.safetensors.* is "
                                  "damaged" % part)

    def test_flipped_bits_on_the_disk(self):
        first = self.new_cluster(JOB.replace("steps: %d" % STEPS, "steps: %d" % EVERY)).start()
        folder = self.assert_finished(first)["checkpoint"]
        files = sorted(os.listdir(folder))
        self.assertIn("manifest.json", files)
        self.assertGreater(len(files), 3)
        rng = random.Random(1)
        for name in files:
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                good = file.read()
            bad = bytearray(good)
            # Of a manifest one that decides nothing else.
            place = good.index(b"created_at") + 14 if name == "manifest.json" else rng.randrange(len(good))
            bad[place] ^= 1
            with open(path, "wb") as file:
                file.write(bad)
            with self.subTest(file=name, place=place):
                again = self.new_cluster(JOB, checkpoint_dir=first.checkpoint_dir)
                again.start_coordinator(flags=["--resume"], wait=False)
                self.assertEqual(again["coordinator"].wait(c.FAULT), 1, again.report())
                self.assertRegex(again["coordinator"].last_line,
                                 "cannot resume: .*/%s: is damaged" % name)
            with open(path, "wb") as file:
                file.write(good)
        self.assert_resumes(first, EVERY)

    def assert_cause(self, cluster, name, cause):
        """The coordinator ends with it, and whoever it is that can't read."""
        for process in {"coordinator", name}:
            self.assertEqual(cluster[process].wait(c.FAULT), 1, cluster.report())
            self.assertRegex(cluster[process].last_line, cause)


if __name__ == "__main__":
    c.main()
