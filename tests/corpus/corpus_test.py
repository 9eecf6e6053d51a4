"""deploy/corpus/corpus.py: duplicates, the split, and the order."""
import random
import unittest

from corpus import Corpus

WORDS = ["".join(random.Random(i).choices("abcdefghij", k=6)) for i in range(5000)]


def paragraph(number):
    """30 words that no other paragraph has."""
    return " ".join(random.Random(number).choices(WORDS, k=30)) + "."


def documents(corpus):
    return [document for part in corpus.parts().values() for document in part]


class CorpusTest(unittest.TestCase):
    def test_a_paragraph_comes_once(self):
        corpus = Corpus()
        self.assertEqual(corpus.add("a", [paragraph(1), paragraph(2), paragraph(1)]), 60)
        self.assertEqual(corpus.add("b", [paragraph(2).upper(), paragraph(3), paragraph(4)]), 60)
        self.assertEqual(sorted(sum(documents(corpus), [])), sorted(map(paragraph, (1, 2, 3, 4))))
        self.assertEqual(corpus.words, 120)

    def test_a_document_that_is_mostly_elsewhere_goes(self):
        corpus = Corpus()
        corpus.add("a", [paragraph(1), paragraph(2)])
        self.assertEqual(corpus.add("b", [paragraph(1), paragraph(2), paragraph(3)]), 0)
        self.assertEqual(len(documents(corpus)), 1)

    def test_a_short_document_goes(self):
        self.assertEqual(Corpus().add("a", ["A few words."]), 0)

    def test_split_is_by_document_and_of_the_wanted_sizes(self):
        corpus = Corpus()
        count = 20000
        for i in range(count):
            corpus.add(f"document {i}", [paragraph(2 * i), paragraph(2 * i + 1)])
        parts = corpus.parts()
        self.assertEqual(list(parts), ["train", "validation", "test"])
        self.assertEqual(sum(map(len, parts.values())), count)
        self.assertTrue(all(len(document) == 2 for document in documents(corpus)))
        for part in ("validation", "test"):
            self.assertAlmostEqual(len(parts[part]), count / 100, delta=50)

    def test_order_and_part_are_the_names(self):
        names = [f"document {i}" for i in range(500)]
        first, second = Corpus(), Corpus()
        for name in names:
            first.add(name, [paragraph(name)])
        for name in reversed(names):
            second.add(name, [paragraph(name)])
        self.assertEqual(first.parts(), second.parts())
        self.assertNotEqual([d[0] for d in documents(first)], [paragraph(name) for name in names])


if __name__ == "__main__":
    unittest.main()
