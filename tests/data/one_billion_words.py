"""A small text in the format of the One Billion Word Benchmark, made up.

99 training shards, 50 held-out shards and a vocabulary file, named and written as the published ones
are; words are as frequent as Zipf's law has it. By hand:

  python3 tests/data/one_billion_words.py FOLDER
"""

import collections
import os
import random
import sys

TRAINING = "training-monolingual.tokenized.shuffled/news.en-%05d-of-00100"
HELD_OUT = "heldout-monolingual.tokenized.shuffled/news.en.heldout-%05d-of-00050"
MIN_COUNT = 3  # of a word in the vocabulary

MARKS = ["the", ",", ".", "of", "\"", "'s", "n't", "The", "--", "£", "(", ")", "U.S.", "café"]


class Text:
    """The sentences, as lists of words, by path, and the words of the vocabulary."""

    def __init__(self, seed=1, words=1500, training_sentences=12, held_out_sentences=20):
        rng = random.Random(seed)
        made = ["".join(rng.choice(syllable) for syllable in
                        (["b", "d", "K", "m", "tr"], "aeiou", "nrst", "aeiou", ["", "d", "s", "-a"]))
                for _ in range(4 * words)]
        words = MARKS + list(dict.fromkeys(made))[:words]
        weights = [1 / (rank + 1) for rank in range(len(words))]
        self.sentences = {}
        for paths, sentences in (([TRAINING % i for i in range(1, 100)], training_sentences),
                                 ([HELD_OUT % i for i in range(50)], held_out_sentences)):
            for path in paths:
                self.sentences[path] = [
                    rng.choices(words, weights, k=rng.randrange(1, 20)) for _ in range(sentences)]
        counts = collections.Counter(
            word for path, sentences in self.sentences.items() if path.startswith("training")
            for sentence in sentences for word in sentence)
        self.vocabulary = [word for word, count in counts.most_common() if count >= MIN_COUNT]

    def write(self, folder):
        """The shards below `folder`, and vocabulary.txt in it."""
        for path, sentences in self.sentences.items():
            path = os.path.join(folder, path)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="utf-8") as file:
                file.writelines(" ".join(sentence) + "\n" for sentence in sentences)
        with open(os.path.join(folder, "vocabulary.txt"), "w", encoding="utf-8") as file:
            file.writelines(word + "\n" for word in ["<S>", "</S>", "<UNK>"] + self.vocabulary)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    Text().write(sys.argv[1])
