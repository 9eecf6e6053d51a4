"""Readers of documentation: from a file to documents, each a name and its raw paragraphs.

Every reader takes a path, and the name that stands for it in the documents' names.
"""
import gzip
import html as html_entities
import os
import re
import subprocess

from lxml import etree
from lxml import html as lxml_html


class Unreadable(Exception):
    """The file isn't of the reader's format."""


BLOCKS = frozenset("""
address article aside blockquote body br caption center dd details div dl dt fieldset figcaption
figure footer form h1 h2 h3 h4 h5 h6 header hr html li main nav ol p section summary table tbody td
tfoot th thead tr ul
""".split())
# Whatever isn't text to read. Headings aren't sentences.
SKIPPED = frozenset("""
audio button canvas code-block dt footer form h1 h2 h3 h4 h5 h6 head header iframe img input math nav
noscript object option pre script select style svg textarea th title video
""".split())
SKIPPED_CLASSES = frozenset("""
admonition-title breadcrumb breadcrumbs contents footer footnote headerlink highlight
literal-block menu nav navbar navfooter navheader navigation programlisting related screen sidebar
sphinxsidebar synopsis t-navbar toc toctree-wrapper
""".split())


def html(path, name):
    """One document."""
    with open(path, "rb") as file:
        data = file.read()
    if not data.strip():
        return
    # The declared encoding is often missing, and nearly always this one.
    try:
        data.decode("utf-8")
        parser = lxml_html.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True)
    except UnicodeDecodeError:
        parser = lxml_html.HTMLParser(encoding="latin-1", remove_comments=True, remove_pis=True)
    try:
        root = lxml_html.document_fromstring(data, parser=parser)
    except etree.ParserError:  # a file without elements
        return
    language = root.get("lang", "en").lower()
    if language.startswith("en"):
        yield name, _blocks(root)


def _blocks(root):
    """The texts between the borders of block elements, in order."""
    paragraphs = []
    pieces = []

    def end_paragraph():
        if pieces:
            paragraphs.append("".join(pieces))
            pieces.clear()

    def walk(element):
        block = element.tag in BLOCKS
        skipped = element.tag in SKIPPED or bool(
            SKIPPED_CLASSES & set(element.get("class", "").lower().split()))
        if block or (skipped and element.tag == "pre"):
            end_paragraph()
        if not skipped:
            if element.text:
                pieces.append(element.text)
            for child in element:
                walk(child)
        if block:
            end_paragraph()
        if element.tail:
            pieces.append(element.tail)

    walk(root)
    end_paragraph()
    return paragraphs


# Elements that hold a paragraph in DocBook and Mallard, and those inside whose text isn't prose.
XML_PARAGRAPHS = ("para", "simpara", "p")
XML_SKIPPED = ("programlisting", "screen", "synopsis", "code", "footnote", "indexterm", "info")


def xml(path, name):
    """One document: DocBook or Mallard."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, recover=True, huge_tree=True)
    with open(path, "rb") as file:
        try:
            root = etree.parse(file, parser).getroot()
        except etree.XMLSyntaxError as error:
            raise Unreadable(str(error)) from error
    if root is None:
        raise Unreadable(path)
    paragraphs = []
    for element in root.iter(etree.Element):
        if etree.QName(element).localname not in XML_PARAGRAPHS:
            continue
        paragraphs.append("".join(_xml_text(element)))
    yield name, paragraphs


def _xml_text(element):
    yield element.text or ""
    for child in element:
        tag = etree.QName(child).localname if isinstance(child.tag, str) else ""
        if tag and tag not in XML_SKIPPED and tag not in XML_PARAGRAPHS:
            yield from _xml_text(child)
        yield child.tail or ""


BLANK_LINES = re.compile(r"\n[ \t\r\f]*(?:\n[ \t\r\f]*)+")


def text(path, name):
    """One document: plain text with blank lines between its paragraphs, perhaps compressed."""
    yield name, BLANK_LINES.split(_read_text(path))


def _read_text(path):
    with open(path, "rb") as file:
        data = file.read()
    if data.startswith(b"\x1f\x8b"):
        data = gzip.decompress(data)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def pod(path, name):
    """One document: Perl's plain old documentation."""
    shown = subprocess.run(["pod2text", "--loose", path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    if not shown:
        raise Unreadable(path)
    yield name, BLANK_LINES.split(shown.decode("utf-8", "replace"))


LINK = re.compile("[{}]")  # around the names of other entries
DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def dictionary(path, name):
    """An entry of a dictd dictionary is a document; path is its .index."""
    entries = _read_bytes(path[:-len("index")] + "dict.dz")
    seen = set()
    with open(path, encoding="utf-8", errors="replace") as index:
        for line in index:
            word, _, place = line.rstrip("\n").partition("\t")
            begin, _, size = place.partition("\t")
            place = (_number(begin), _number(size.split("\t")[0]))
            if word.startswith("00") or place in seen:
                continue
            seen.add(place)
            entry = entries[place[0]:place[0] + place[1]].decode("utf-8", "replace")
            entry = LINK.sub("", html_entities.unescape(entry))
            yield f"{name}:{word}", BLANK_LINES.split(entry)


def _number(digits):
    value = 0
    for digit in digits:
        value = 64 * value + DIGITS.index(digit)
    return value


def _read_bytes(path):
    with gzip.open(path) as file:
        return file.read()


ALL_VERSES = "Gen 1:1-Rev 22:21"
REFERENCE = re.compile(r"\s*((?:I{1,3} )?[A-Z][A-Za-z ]+ \d+):\d+: ?")
# How diatheke shows emphasis, and the borders of paragraphs.
EMPHASIS = re.compile(r"(?<!\S)\*(?!\S)")
SWORD_BORDER = re.compile(r"\n| {3,}")


def sword(path, name):
    """A chapter of a SWORD commentary is a document; path is the module's .conf."""
    with open(path, encoding="utf-8", errors="replace") as conf:
        module = conf.readline().strip().strip("[]")
    chapters = {}
    seen = set()  # diatheke repeats a comment with every verse that it is on
    for chapter, comment in _comments(os.path.dirname(os.path.dirname(path)), module):
        paragraphs = chapters.setdefault(chapter, [])
        for paragraph in SWORD_BORDER.split(EMPHASIS.sub("", comment)):
            if paragraph not in seen:
                seen.add(paragraph)
                paragraphs.append(paragraph)
    if not chapters:
        raise Unreadable(f"diatheke shows nothing of {module}")
    for chapter, paragraphs in chapters.items():
        yield f"{name}:{chapter}", paragraphs


def _comments(root, module):
    """(chapter, comment) for each verse. All of them together can be large."""
    with subprocess.Popen(["diatheke", "-b", module, "-f", "plain", "-k", ALL_VERSES],
                          env={**os.environ, "SWORD_PATH": os.path.abspath(root), "LC_ALL": "C.UTF-8"},
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8",
                          errors="replace") as diatheke:
        chapter, lines = None, []
        for line in diatheke.stdout:
            reference = REFERENCE.match(line)
            if reference:
                if chapter:
                    yield chapter, "".join(lines)
                chapter, lines = reference[1], [line[reference.end():]]
            else:
                lines.append(line)
        if chapter:
            yield chapter, "".join(lines)
