"""deploy/corpus/readers.py: paragraphs of each format."""
import gzip
import os
import tempfile
import unittest

import readers


class ReadersTest(unittest.TestCase):
    def write(self, name, data):
        path = os.path.join(tempfile.mkdtemp(dir=os.environ.get("TEST_TMPDIR")), name)
        with open(path, "wb") as file:
            file.write(data)
        return path

    def read(self, reader, name, data):
        return [(document, [" ".join(p.split()) for p in paragraphs if p.strip()])
                for document, paragraphs in reader(self.write(name, data), name)]

    def html(self, text):
        return self.read(readers.html, "a.html", text.encode())[0][1]

    def test_html_blocks_are_paragraphs(self):
        self.assertEqual(
            self.html("<p>One <b>bold</b> word<p>Two<ul><li>Three<li>Four <i>more</i></ul>Five"
                      "<dl><dt>term<dd>Six</dl><table><tr><td>Seven<td>Eight</table>"),
            ["One bold word", "Two", "Three", "Four more", "Five", "Six", "Seven", "Eight"])

    def test_html_paragraph_goes_on_behind_an_inline_skip(self):
        self.assertEqual(self.html("<p>See <img src=x> the <!-- no --> picture"), ["See the picture"])

    def test_html_code_headings_and_navigation_go(self):
        self.assertEqual(
            self.html("<html><head><title>T</title><style>s</style></head><body><nav>N</nav>"
                      "<h1>H</h1><div class='sphinxsidebar x'>S</div>Before<pre>code</pre>After"
                      "<div class='highlight'>code</div><script>s</script><footer>F</footer>"),
            ["Before", "After"])

    def test_html_encodings(self):
        self.assertEqual(self.read(readers.html, "a", "<p>é".encode())[0][1], ["é"])
        self.assertEqual(self.read(readers.html, "a", "<p>é".encode("latin-1"))[0][1], ["é"])

    def test_html_of_other_languages_and_empty_files(self):
        self.assertEqual(self.read(readers.html, "a", b"<html lang='de'><p>Text"), [])
        self.assertEqual(len(self.read(readers.html, "a", b"<html lang='en-GB'><p>Text")), 1)
        self.assertEqual(self.read(readers.html, "a", b""), [])
        self.assertEqual(self.read(readers.html, "a", b"<!-- nothing -->"), [])

    def test_xml(self):
        self.assertEqual(
            self.read(readers.xml, "a.page",
                      b"<page xmlns='http://projectmallard.org/1.0/'><info><desc>No</desc></info>"
                      b"<title>No</title><p>One <gui>two</gui> three<!-- no --></p>"
                      b"<item><p>Four</p></item></page>"),
            [("a.page", ["One two three", "Four"])])

    def test_xml_that_is_none(self):
        with self.assertRaises(readers.Unreadable):
            self.read(readers.xml, "a.page", b"no mark-up")

    def test_text(self):
        expected = [("a", ["One two", "three"])]
        text = b"One\n  two\n \n\n three\n"
        self.assertEqual(self.read(readers.text, "a", text), expected)
        self.assertEqual(self.read(readers.text, "a", gzip.compress(text)), expected)

    def test_pod(self):
        self.assertEqual(
            self.read(readers.pod, "a.pod", b"=head1 NAME\n\nA C<word> and\nB<another>.\n\n  code\n"),
            [("a.pod", ["NAME", "A \"word\" and another.", "code"])])
        with self.assertRaises(readers.Unreadable):
            self.read(readers.pod, "a.pod", b"")

    def test_sword(self):
        """What diatheke shows of the module is made up here."""
        folder = os.path.dirname(self.write("diatheke", b"""#!/bin/sh
[ "$2 $SWORD_PATH" = "Com $(pwd)/usr/share/sword" ] || exit 1
cat <<'END'
Genesis 1:1: On * both * verses:    two
  paragraphs.
Genesis 1:2: On * both * verses:    two
  paragraphs.
II Kings 1:1: Another.
(Com)
END
"""))
        os.chmod(os.path.join(folder, "diatheke"), 0o755)
        conf = os.path.join(folder, "usr/share/sword/mods.d/com.conf")
        os.makedirs(os.path.dirname(conf))
        with open(conf, "w") as file:
            file.write("[Com]\nLang=en\n")
        path, working = os.environ["PATH"], os.getcwd()
        os.environ["PATH"] = folder + ":" + path
        os.chdir(folder)
        try:
            shown = [(name, [" ".join(p.split()) for p in paragraphs if p.strip()])
                     for name, paragraphs in readers.sword(conf, "com")]
            with open(conf, "w") as file:
                file.write("[Other]\n")
            with self.assertRaises(readers.Unreadable):
                list(readers.sword(conf, "com"))
        finally:
            os.environ["PATH"] = path
            os.chdir(working)
        self.assertEqual(shown, [("com:Genesis 1", ["On both verses:", "two", "paragraphs."]),
                                 ("com:II Kings 1", ["Another.", "(Com)"])])

    def test_dictionary(self):
        entries = b"intro\nCat\n  A {small} animal\nDog\n  An animal;\n\n  it barks.\n"
        index = b"00-database-info\tA\tG\ncat\tG\tW\nfeline\tG\tW\ndog\tc\tl\n"
        path = self.write("d.index", index)
        with gzip.open(path[:-len("index")] + "dict.dz", "wb") as file:
            file.write(entries)
        self.assertEqual(
            [(name, [" ".join(p.split()) for p in paragraphs])
             for name, paragraphs in readers.dictionary(path, "d.index")],
            [("d.index:cat", ["Cat A small animal"]), ("d.index:dog", ["Dog An animal;", "it barks."])])


if __name__ == "__main__":
    unittest.main()
