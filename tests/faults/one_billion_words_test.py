"""From a text in the format of the One Billion Word Benchmark to a trained model, by real processes
and with a job as those of the paper's table 7 are: tables, and a row more than the data has words."""

import json
import os
import struct
import subprocess

from tests.data import one_billion_words as obw
from tests.faults import cluster as c

STEPS = 40  # The word that isn't there is a candidate in about every fifth.
SHARDS = 3


def updates_of_rows(checkpoint, shard):
    """How often a step has updated each row of a table's shard."""
    path = os.path.join(checkpoint, shard.replace("/", "-") + ".safetensors")
    with open(path, "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        entry = json.loads(file.read(size))[shard + "#count"]
        begin, end = entry["data_offsets"]
        file.seek(8 + size + begin)
        return struct.unpack("<%dq" % entry["shape"][0], file.read(end - begin))


class OneBillionWordsTest(c.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        text = os.path.join(cls.root, "one_billion_words")
        obw.Text().write(text)
        cls.data = os.path.join(cls.root, "one_billion_words_data")
        subprocess.run([c.PREPARE_TEXT, "--one_billion_words", text, "--vocabulary_file",
                        os.path.join(text, "vocabulary.txt"), "--out", cls.data],
                       check=True, timeout=c.PATIENCE, stdout=subprocess.DEVNULL)
        with open(os.path.join(cls.data, "vocab.txt"), encoding="utf-8") as file:
            cls.words = len(file.read().splitlines())

    def test_a_row_more_than_words(self):
        job = c.job(steps=STEPS, edits={
            "d_model: 16\n": "d_model: 16 vocabulary: %d tables { shards: %d candidates: %d }\n" %
                             (self.words + 1, SHARDS, self.words // 2),
            "adam {}": "adam {} tables { beta1: 0 second_moment: SECOND_MOMENT_PER_ROW }",
        })
        results = [self.train(job, servers, workers) for servers, workers in ((1, 1), (3, 2))]
        for key in ("digest", "test_perplexity"):
            self.assertEqual(results[1][key], results[0][key])
        # Better than knowing nothing, by the words of the table: the one that isn't there counts.
        self.assertLess(results[0]["test_perplexity"], self.words + 1)
        checkpoint = results[0]["checkpoint"]
        updates = [count for i in range(SHARDS)
                   for count in updates_of_rows(checkpoint, "softmax/rows%d" % i)]
        self.assertEqual(len(updates), self.words + 1)
        # The word that isn't there has been a candidate; it has never been an input.
        self.assertGreater(updates[-1], 0)
        inputs = updates_of_rows(checkpoint, "embedding/rows%d" % (SHARDS - 1))
        self.assertEqual(inputs[-1], 0)


if __name__ == "__main__":
    c.main()
