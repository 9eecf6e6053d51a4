"""deploy/corpus/prose.py: what is kept, and what counts as the same."""
import unittest

import prose

SENTENCE = "The shape of the cluster never changes the result of a training run."


class CleanTest(unittest.TestCase):
    def test_white_space_marks_and_invisible_characters_go(self):
        self.assertEqual(prose.clean(" A\u00a0word\u00ad s\n\tof \u200bit [12] here.¶ "), "A word s of it here.")

    def test_bullets_go(self):
        self.assertEqual(prose.clean("  *  An item - of it."), "An item - of it.")
        self.assertEqual(prose.clean("\u2022 An item."), "An item.")

    def test_composes(self):
        self.assertEqual(prose.clean("cafe\u0301"), "café")

    def test_other_brackets_stay(self):
        self.assertEqual(prose.clean("an array[i] of [them]"), "an array[i] of [them]")


class IsProseTest(unittest.TestCase):
    def check(self, expected, *texts):
        for text in texts:
            self.assertEqual(prose.is_prose(text), expected, text)

    def test_sentences(self):
        self.check(True, SENTENCE, '"' + SENTENCE + '"', SENTENCE[:-1] + " (see below).",
                   "If you give a name to it, then all of them can be found by that name:",
                   "3 of the users' files were too large for the disk, so we can't keep them.",
                   "As a guest, you will find the name of the café in the list of those we know.")

    def test_fragments(self):
        self.check(False, "", "Too short a sentence.", SENTENCE[:-1], SENTENCE[0].lower() + SENTENCE[1:],
                   "Table of the contents of this manual and of all that is in it")

    def test_code(self):
        self.check(False,
                   "For (int i = 0; i < n; ++i) { sum += a[i] * b[i]; } return sum / n;.",
                   "Usage: ls -l /usr/bin | grep -v foo_bar > out.txt && rm -rf $TMP/x.")

    def test_lists_of_names(self):
        self.check(False,
                   "Alice Adams, Bob Brown, Carol Clark, David Davis, Erin Evans, Frank Fisher.")

    def test_other_languages(self):
        self.check(False, "Der Rechner ist nicht mit dem Netz verbunden und kann daher nichts laden.")

    def test_too_long(self):
        self.check(False, " ".join([SENTENCE] * 40))

    def test_licences(self):
        self.check(False,
                   "Permission is hereby granted to all of you, free of any charge, to deal in this.",
                   "This manual is licensed under the terms that you can find at the end of it.",
                   "Copyright of this work is with those who have written the parts of it.")


class KeyTest(unittest.TestCase):
    def test_ignores_case_digits_punctuation_and_space(self):
        self.assertEqual(prose.key("In version 1.2, it Is new."), prose.key("In version 3: it is new"))

    def test_keeps_words_apart(self):
        self.assertNotEqual(prose.key("It is new."), prose.key("It is old."))


if __name__ == "__main__":
    unittest.main()
