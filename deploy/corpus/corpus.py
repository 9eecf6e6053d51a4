"""Documents to a corpus: duplicates out, order, and the split into training, validation and test."""
import hashlib

import prose

# A document loses whatever an earlier one had; one that loses more than this share goes whole.
MAX_DUPLICATE_SHARE = 0.5
MIN_DOCUMENT_WORDS = 20
PARTS = ("train", "validation", "test")
HELD_OUT_SHARE = 0.01  # of the documents, for validation and for the test each


class Corpus:
    """Takes documents in a fixed order; its contents are a function of them alone."""

    def __init__(self):
        self._seen = set()  # digests of the paragraphs' keys
        self._documents = []  # (digest of the name, paragraphs)
        self.words = 0

    def add(self, name, paragraphs):
        """Adds what is new of a document of cleaned prose; returns its number of words."""
        fresh = []
        total = new = 0
        for paragraph in paragraphs:
            words = len(paragraph.split())
            total += words
            digest = hashlib.blake2b(prose.key(paragraph).encode(), digest_size=8).digest()
            if digest not in self._seen:
                self._seen.add(digest)
                fresh.append(paragraph)
                new += words
        if new < MIN_DOCUMENT_WORDS or total - new > MAX_DUPLICATE_SHARE * total:
            return 0
        self._documents.append((hashlib.sha256(name.encode()).digest(), fresh))
        self.words += new
        return new

    def parts(self):
        """{part: documents}, each a list of paragraphs. The order is that of the names' digests, so
        that any stretch of a part is a sample of the whole."""
        parts = {part: [] for part in PARTS}
        for digest, paragraphs in sorted(self._documents):
            parts[_part(digest)].append(paragraphs)
        return parts


def _part(digest):
    # Not the bytes that decide the order.
    point = int.from_bytes(digest[-8:], "big") / 2**64
    if point < HELD_OUT_SHARE:
        return "validation"
    return "test" if point < 2 * HELD_OUT_SHARE else "train"
