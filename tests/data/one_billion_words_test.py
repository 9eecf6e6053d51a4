"""prepare_text on a text in the format of the One Billion Word Benchmark."""

import array
import collections
import json
import os
import random
import shutil
import subprocess
import tempfile
import time
import unittest

from tests.data import one_billion_words as obw

PREPARE_TEXT = "worker/data/prepare_text"
PATIENCE = 60  # seconds


class TestCase(unittest.TestCase):
    def setUp(self):
        self.root = tempfile.mkdtemp(dir=os.environ.get("TEST_TMPDIR"))
        self.addCleanup(shutil.rmtree, self.root, ignore_errors=True)
        self.out = os.path.join(self.root, "out")

    def prepare(self, *flags):
        return subprocess.run([PREPARE_TEXT, "--out", self.out] + list(flags), timeout=PATIENCE,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")

    def assert_prepared(self, *flags):
        process = self.prepare(*flags)
        self.assertEqual(process.returncode, 0, process.stderr)
        return process

    def words(self):
        with open(os.path.join(self.out, "vocab.txt"), encoding="utf-8") as file:
            return file.read().splitlines()

    def ids(self, split):
        ids = array.array("i")
        path = os.path.join(self.out, split + ".bin")
        with open(path, "rb") as file:
            ids.fromfile(file, os.path.getsize(path) // ids.itemsize)
        return ids


class OneBillionWordsTest(TestCase):
    @classmethod
    def setUpClass(cls):
        cls.text = obw.Text()

    def setUp(self):
        super().setUp()
        self.folder = os.path.join(self.root, "text")
        self.text.write(self.folder)
        self.vocabulary = os.path.join(self.folder, "vocabulary.txt")
        self.flags = ["--one_billion_words", self.folder, "--vocabulary_file", self.vocabulary]

    def path(self, name):
        return os.path.join(self.folder, name)

    def contents(self, name):
        with open(self.path(name), "rb") as file:
            return file.read()

    def replace(self, name, contents):
        with open(self.path(name), "wb") as file:
            file.write(contents)

    def expected(self, paths):
        """The words of the shards, as the ids should spell them."""
        known = set(self.text.vocabulary)
        return [word for path in paths for sentence in self.text.sentences[path]
                for word in [w if w in known else "<unk>" for w in sentence] + ["<eos>"]]

    def assert_holds(self, validation_shards=1):
        words = self.words()
        self.assertEqual(words[:2], ["<unk>", "<eos>"])
        self.assertEqual(sorted(words[2:]), sorted(self.text.vocabulary))
        with open(os.path.join(self.out, "meta.json")) as file:
            meta = json.load(file)
        for split, paths in {
            "train": [obw.TRAINING % i for i in range(1, 100)],
            "validation": [obw.HELD_OUT % i for i in range(1, validation_shards + 1)],
            "test": [obw.HELD_OUT % 0],
        }.items():
            expected = self.expected(paths)
            self.assertEqual([words[i] for i in self.ids(split)], expected, split)
            self.assertEqual(meta["splits"][split]["tokens"], len(expected))
            self.assertEqual(meta["splits"][split]["lines"], expected.count("<eos>"))
            self.assertEqual(meta["splits"][split]["unknown"], expected.count("<unk>"))
        self.assertGreater(meta["splits"]["test"]["unknown"], 0)

    def assert_refused(self, cause, *flags, status=1):
        process = self.prepare(*(flags or self.flags))
        self.assertEqual(process.returncode, status, process.stderr)
        self.assertIn("prepare_text: ", process.stderr)
        self.assertIn(cause, process.stderr)
        self.assertFalse(os.path.exists(os.path.join(self.out, "meta.json")))

    def test_published_vocabulary(self):
        self.assert_prepared(*self.flags)
        self.assert_holds()
        # The file's order is that of the counts, so it stays, and so do ties.
        self.assertEqual(self.words()[2:], self.text.vocabulary)
        self.assertIn("is up to date", self.assert_prepared(*self.flags).stdout)

    def test_validation_shards(self):
        self.assert_prepared(*self.flags, "--validation_shards", "7")
        self.assert_holds(validation_shards=7)
        self.assert_prepared(*self.flags, "--validation_shards", "49")
        self.assert_holds(validation_shards=49)

    def test_vocabulary_of_the_text(self):
        """The published vocabulary is that of words that occur three times."""
        self.assert_prepared("--one_billion_words", self.folder)
        self.assert_holds()

    def test_vocabulary_in_another_order(self):
        """Ids are sorted by frequency whatever the file's order is."""
        shuffled = ["<S>", "</S>", "<UNK>"] + self.text.vocabulary
        random.Random(2).shuffle(shuffled)
        self.replace("vocabulary.txt", "\r\n".join(shuffled).encode())
        self.assert_prepared(*self.flags)
        self.assert_holds()
        counts = collections.Counter(self.ids("train"))
        in_order = [counts[i] for i in range(2, len(self.words()))]
        self.assertEqual(in_order, sorted(in_order, reverse=True))

    def test_general_form(self):
        """What --one_billion_words stands for."""
        self.assert_prepared(*self.flags)
        special = [self.ids(split).tobytes() for split in ("train", "validation", "test")]
        shutil.rmtree(self.out)
        self.assert_prepared(
            "--tokenized", "--vocabulary_file", self.vocabulary,
            "--train", self.path("training-*/news.en-*-of-00100"),
            "--validation", self.path(obw.HELD_OUT % 1), "--test", self.path(obw.HELD_OUT % 0))
        self.assertEqual(special,
                         [self.ids(split).tobytes() for split in ("train", "validation", "test")])

    def test_missing_shards(self):
        for i in (0, 3, 17, 44):
            os.remove(self.path((obw.TRAINING if i else obw.HELD_OUT) % i))
        os.rename(self.path(obw.TRAINING % 50), self.path("news.en-50"))
        self.assert_refused("%s, %s, %s and 2 more" % (
            obw.TRAINING % 3, obw.TRAINING % 17, obw.TRAINING % 44))
        # Not asked for, not missed.
        self.assert_refused("no file matches " + self.path("heldout-*/news-*"), "--train",
                            self.path("training-*/*"), "--validation", self.path(obw.HELD_OUT % 1),
                            "--test", self.path("heldout-*/news-*"))

    def test_missing_folder(self):
        self.assert_refused("/nowhere isn't the whole One Billion Word Benchmark: it has no "
                            "training-monolingual.tokenized.shuffled/news.en-00001-of-00100",
                            "--one_billion_words", "/nowhere")

    def test_bad_shards(self):
        shard = obw.TRAINING % 40
        good, test = self.contents(shard), self.contents(obw.HELD_OUT % 0)
        for contents, cause in [
            (b"", " is empty"),
            (b"The end .\ncaf\xe9 .\n", " line 2 is not UTF-8"),
            (b"\x1f\x8b\x08\x00", " is compressed; unpack it"),
            (b"The end .\nThe end . </S>\n", " line 2 has the word </S>"),
            (b"x" * (17 << 20), " line 1 is longer than"),
            (test, " and %s are the same text" % self.path(obw.HELD_OUT % 0)),
        ]:
            with self.subTest(cause):
                self.replace(shard, contents)
                self.assert_refused(self.path(shard) + cause)
                self.assert_refused(self.path(shard) + cause, "--one_billion_words", self.folder)
        self.replace(shard, good.replace(b"\n", b"\r\n\r\n"))
        self.assert_prepared(*self.flags)
        self.assert_holds()

    def test_bad_vocabulary(self):
        words = "\n".join(self.text.vocabulary).encode()
        for contents, cause in [
            (b"", " line 1: empty"),
            (b"<S>\n</S>\n" + words, " has no <UNK>"),
            (b"<UNK>\n" + words, " has no </S>"),
            (b"<S>\n</S>\n<UNK>\n" + words + b"\nthe\n",
             " line %d: the word the is there for the second time" %
             (4 + len(self.text.vocabulary))),
            (b"<S>\n</S>\n<UNK>\ncaf\xe9\n", " line 4: not UTF-8"),
        ]:
            with self.subTest(cause):
                self.replace("vocabulary.txt", contents)
                self.assert_refused(self.vocabulary + cause)

    def test_options_that_make_no_sense(self):
        for flags, cause in [
            (["--text", "x"], "leave out --text"),
            (["--train", "x"], "leave out --text, --train"),
            (["--validation_shards", "0"], "--validation_shards is 0: must be 1 to 49"),
            (["--validation_shards", "50"], "--validation_shards is 50: must be 1 to 49"),
            (["--min_count", "2"], "leave out --vocabulary_size and --min_count"),
            (["--vocabulary_size", "99"], "leave out --vocabulary_size and --min_count"),
        ]:
            with self.subTest(cause):
                self.assert_refused(cause, *self.flags, *flags, status=2)


class ScriptTest(TestCase):
    """deploy/prepare_text.sh, in a tree of its own: it neither installs nor builds."""

    def setUp(self):
        super().setUp()
        self.repo = os.path.join(self.root, "repo")
        shutil.copytree("deploy", os.path.join(self.repo, "deploy"))
        self.program("deploy/install.sh", "#!/bin/sh\necho \"$0 $@\" >>%s/calls\n" % self.root)
        self.program("bin/bazel", "#!/bin/sh\necho \"$PWD $@\" >>%s/calls\n" % self.root)
        link = os.path.join(self.repo, "bazel-bin", PREPARE_TEXT)
        os.makedirs(os.path.dirname(link))
        os.symlink(os.path.abspath(PREPARE_TEXT), link)

    def program(self, name, contents):
        path = os.path.join(self.repo, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.exists(path):
            os.remove(path)
        with open(path, "w") as file:
            file.write(contents)
        os.chmod(path, 0o755)

    def run_script(self, *flags):
        path = os.path.join(self.repo, "bin") + ":" + os.environ["PATH"]
        return subprocess.run([os.path.join(self.repo, "deploy/prepare_text.sh")] + list(flags),
                              env={**os.environ, "PATH": path}, cwd=self.root, timeout=PATIENCE,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")

    def test_builds_and_runs(self):
        obw.Text().write(os.path.join(self.root, "text"))
        process = self.run_script("--one_billion_words", "text", "--out", "out")
        self.assertEqual(process.returncode, 0, process.stderr)
        self.assertEqual(self.words()[:2], ["<unk>", "<eos>"])
        with open(os.path.join(self.root, "calls")) as file:
            install, build = file.read().splitlines()
        self.assertTrue(install.endswith("deploy/install.sh build runtime"), install)
        self.assertRegex(build, "^%s build .*//worker/data:prepare_text$" % self.repo)

    def test_failures(self):
        process = self.run_script()
        self.assertEqual(process.returncode, 2)
        self.assertIn("Usage: deploy/prepare_text.sh", process.stdout)
        process = self.run_script("--text", "nowhere", "--out", "out")
        self.assertEqual(process.returncode, 1)
        self.assertIn("prepare_text: cannot open nowhere: No such file", process.stderr)
        self.program("bin/bazel", "#!/bin/sh\nexit 1\n")
        process = self.run_script("--text", "nowhere", "--out", "out")
        self.assertEqual(process.returncode, 1)
        self.assertIn("prepare_text.sh: the build failed", process.stderr)


class MemoryTest(TestCase):
    def test_large_text(self):
        """What is in memory doesn't grow with the text."""
        # What this process has had at its peak must not hide what its child has.
        own = len(b"x" * (256 << 20))
        small, large = (self.peak_bytes(megabytes) for megabytes in (2, 66))
        self.assertLess(large, own)
        self.assertLess(large - small, 16 << 20)

    def peak_bytes(self, megabytes):
        rng = random.Random(1)
        lines = [" ".join("w%d" % rng.randrange(500) for _ in range(20)) + "\n"
                 for _ in range(1000)]
        text = os.path.join(self.root, "text")
        with open(text, "w") as file:
            while file.tell() < megabytes << 20:
                file.writelines(lines)
        process = subprocess.Popen([PREPARE_TEXT, "--out", self.out, "--text", text, "--tokenized"])
        self.addCleanup(process.kill)
        # The child's own peak so far, as long as it has memory. (Its ru_maxrss would begin with the
        # peak of the process that it is forked from.)
        peak = 0
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < deadline:
            with open("/proc/%d/status" % process.pid) as status:
                peak = max([peak] + [int(line.split()[1]) << 10 for line in status
                                     if line.startswith("VmHWM:")])
            time.sleep(0.005)
        self.assertEqual(process.returncode, 0)
        self.assertGreater(peak, 0)
        return peak


if __name__ == "__main__":
    unittest.main()
