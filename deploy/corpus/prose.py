"""What counts as English prose: cleaning a paragraph, and judging it."""
import re
import unicodedata

MIN_WORDS = 8
MAX_WORDS = 500
# Shares of a paragraph's words. Code, signatures, lists of names and other languages fall below.
MIN_PLAIN_SHARE = 0.8
MIN_FUNCTION_SHARE = 0.22

FUNCTION_WORDS = frozenset("""
a about after all also an and any are as at be because been before but by can could do does each for
from had has have he her his how i if in into is it its may more most must no not of on one only or
other our out over same she should so some such than that the their them then there these they this
those to two under up used was we were what when where which while who will with would you your
""".split())

PLAIN_WORD = re.compile(r"""["'(\[“‘]*[A-Za-z]+(?:['’-][A-Za-z]+)*[.,;:!?"')\]”’]*""")
BEGINS = re.compile(r"""["'(\[“‘]*[A-Z0-9]""")
ENDS = re.compile(r"""[.!?:]["')\]”’]*$""")

# Licences, imprints and the like, which every manual repeats in words of its own.
BOILERPLATE = re.compile(
    r"copyright|©|\(c\) \d{4}|all rights reserved|permission is (hereby )?granted|licensed under"
    r"|under the terms of|general public licen[cs]e|documentation licen[cs]e|apache licen[cs]e"
    r"|creative commons|without (any )?warranty|no event shall|merchantability|redistribut"
    r"|sublicen[cs]e|trademark|free software foundation|last (modified|updated|change)"
    r"|(generated|built|created) (by|with|using) (sphinx|doxygen|docbook)|table of contents",
    re.IGNORECASE)

BULLET = re.compile(r"^[*•·–-] +")
FOOTNOTE_MARK = re.compile(r"\s?\[\d{1,3}\]")
SPACE = re.compile(r"\s+")
# Soft hyphens, zero-width characters, the mark behind a Sphinx heading.
INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff¶]")
LETTERS = re.compile(r"[^a-z]+")


def clean(text):
    """One line of NFC text, without bullets, footnote marks and invisible characters."""
    text = INVISIBLE.sub("", unicodedata.normalize("NFC", text))
    return BULLET.sub("", SPACE.sub(" ", FOOTNOTE_MARK.sub("", text)).strip())


def is_prose(paragraph):
    """Whether a cleaned paragraph is a piece of English of whole sentences."""
    words = paragraph.split()
    if not MIN_WORDS <= len(words) <= MAX_WORDS:
        return False
    if not BEGINS.match(paragraph) or not ENDS.search(paragraph):
        return False
    plain = sum(1 for word in words if PLAIN_WORD.fullmatch(word))
    if plain < MIN_PLAIN_SHARE * len(words):
        return False
    function = sum(1 for word in words if word.strip("\"'()[].,;:!?").lower() in FUNCTION_WORDS)
    if function < MIN_FUNCTION_SHARE * len(words):
        return False
    return not BOILERPLATE.search(paragraph)


def key(paragraph):
    """Equal for paragraphs that differ only in case, digits, punctuation and white space."""
    return LETTERS.sub("", paragraph.lower())
