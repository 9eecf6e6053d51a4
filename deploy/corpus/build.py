"""Puts the corpus together; deploy/debian_corpus.sh is the command."""
import argparse
import collections
import contextlib
import ctypes
import errno
import fcntl
import fnmatch
import gzip
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time

from corpus import PARTS, Corpus
from debs import Failure, candidates, download, unpacked
import prose
import readers

HERE = os.path.dirname(os.path.abspath(__file__))
REPORT_EVERY = 5  # seconds

Source = collections.namedtuple("Source", "package reader patterns licence")


class Stopped(BaseException):
    """By SIGINT or SIGTERM."""


def stop(number, _):
    raise Stopped(number)


def read_list(path):
    """The sources, in the order in which they are taken."""
    sources = []
    with open(path, encoding="utf-8") as file:
        for line in file:
            fields = line.split("#")[0].split(None, 3)
            if fields:
                package, reader, patterns, licence = fields
                sources.append(Source(package, reader, patterns.split(","), licence.strip()))
    return sources


# ---- text of one package


def files_of(source, root):
    """Paths below root that match the source's patterns, sorted. Links would be duplicates."""
    paths = []
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            relative = os.path.relpath(path, root)
            if not os.path.islink(path) and any(
                    fnmatch.fnmatchcase(relative, pattern) for pattern in source.patterns):
                paths.append(relative)
    return sorted(paths)


def read_file(task):
    """Documents of cleaned prose of one file, or None if it can't be read."""
    reader, root, relative = task
    documents = []
    try:
        for name, paragraphs in getattr(readers, reader)(os.path.join(root, relative), relative):
            kept = [p for p in map(prose.clean, paragraphs) if prose.is_prose(p)]
            if kept:
                documents.append((name, kept))
    except (readers.Unreadable, UnicodeError, EOFError, gzip.BadGzipFile):
        return None
    return documents


def become_worker():
    """Ctrl-C is the parent's affair, and its end, even by SIGKILL, is also ours."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def text_path(source, deb, cache):
    """Where the package's text is kept. The name changes with whatever decides the text."""
    digest = hashlib.sha256(repr((source.reader, source.patterns, deb.version)).encode())
    for module in ("prose.py", "readers.py"):
        with open(os.path.join(HERE, module), "rb") as file:
            digest.update(file.read())
    return os.path.join(cache, "text", f"{source.package}-{digest.hexdigest()[:16]}.jsonl.gz")


def extract(source, deb, cache, pool, progress):
    """Writes the documents of a package to text_path, unless they are there."""
    path = text_path(source, deb, cache)
    if os.path.exists(path):
        return path
    download(source.package, deb, progress)
    with unpacked(deb, os.path.join(cache, "unpacked")) as root:
        files = files_of(source, root)
        if not files:
            raise Failure(f"{source.package} {deb.version} has no file like "
                          f"{' or '.join(source.patterns)}")
        unreadable = 0
        tasks = [(source.reader, root, relative) for relative in files]
        with gzip.open(path + ".new", "wt", encoding="utf-8") as out:
            for done, documents in enumerate(pool.imap(read_file, tasks, chunksize=8)):
                progress.report(lambda: f"{source.package}: file {done + 1:,} of {len(files):,}")
                if documents is None:
                    unreadable += 1
                    continue
                for name, paragraphs in documents:
                    out.write(json.dumps([f"{source.package}/{name}", paragraphs]) + "\n")
        if unreadable:
            progress.say(f"{source.package}: left out {unreadable} of {len(files):,} files, which "
                         f"cannot be read as {source.reader}")
        copyright_file = os.path.join(root, "usr/share/doc", source.package, "copyright")
        if os.path.exists(copyright_file):
            shutil.copyfile(copyright_file,
                            os.path.join(cache, "copyright", source.package))
    os.replace(path + ".new", path)
    return path


class Progress:
    def __init__(self, wanted):
        self._wanted = wanted
        self._begin = time.monotonic()
        self._next = self._begin + REPORT_EVERY

    def say(self, text):
        print(text, flush=True)
        self._next = time.monotonic() + REPORT_EVERY

    def report(self, text):
        """Says text() if nothing was said for a while."""
        if time.monotonic() >= self._next:
            self.say("  " + text())

    def package(self, number, count, source, words, total):
        passed = time.monotonic() - self._begin
        left = passed * max(0, self._wanted - total) / max(1, total)
        self.say(f"{number}/{count} {source.package}: {words:,} words; {total:,} of "
                 f"{self._wanted:,}, about {left / 60:.0f} min left")


# ---- the corpus


def write(corpus, rows, cache, out):
    """train.txt, validation.txt, test.txt, copyright/, and the README last."""
    readme = os.path.join(out, "README.md")
    if os.path.exists(readme):
        os.remove(readme)
    licences = os.path.join(out, "copyright")
    shutil.rmtree(licences, ignore_errors=True)
    os.makedirs(licences)
    for source, _, _ in rows:
        kept = os.path.join(cache, "copyright", source.package)
        if os.path.exists(kept):
            shutil.copy(kept, licences)
    lines = ["# English prose from Debian's documentation", ""]
    for part, documents in corpus.parts().items():
        text = "\n".join("".join(p + "\n" for p in document) for document in documents).encode()
        path = os.path.join(out, part + ".txt")
        with open(path + ".new", "wb") as file:
            file.write(text)
        os.replace(path + ".new", path)
        lines.append(f"- {part}.txt: {len(documents):,} documents, {len(text.split()):,} words, "
                     f"SHA-256 {hashlib.sha256(text).hexdigest()}")
    lines += ["", "A paragraph a line, a blank line between documents; no document is in two files.",
              "", "| package | version | words | licence |", "|---|---|---|---|"]
    for source, deb, count in rows:
        lines.append(f"| {source.package} | {deb.version} | {count:,} | {source.licence} |")
    lines += ["", "Each package's copyright file, where it has one, is in copyright/.", ""]
    with open(readme + ".new", "w", encoding="utf-8") as file:
        file.write("\n".join(lines))
    os.replace(readme + ".new", readme)


@contextlib.contextmanager
def opened(cache):
    """The cache folder, for this process alone."""
    for name in ("debs", "text", "copyright"):
        os.makedirs(os.path.join(cache, name), exist_ok=True)
    with open(os.path.join(cache, ".lock"), "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failure(f"another run is using {cache}") from None
        yield


def build(args):
    cache = args.cache
    os.makedirs(args.out, exist_ok=True)
    sources = read_list(args.packages)
    debs = candidates([source.package for source in sources], os.path.join(cache, "debs"))
    progress = Progress(args.words)
    corpus = Corpus()
    rows = []
    with multiprocessing.Pool(args.jobs, become_worker) as pool:
        for number, source in enumerate(sources, 1):
            deb = debs[source.package]
            count = 0
            with gzip.open(extract(source, deb, cache, pool, progress), "rt",
                           encoding="utf-8") as file:
                for line in file:
                    count += corpus.add(*json.loads(line))
            rows.append((source, deb, count))
            progress.package(number, len(sources), source, count, corpus.words)
            if corpus.words >= args.words:
                break
    if corpus.words < args.words:
        raise Failure(f"the packages of {args.packages} give {corpus.words:,} words only; ask for "
                      "no more by --words")
    write(corpus, rows, cache, args.out)
    print(f"{corpus.words:,} words in {args.out}: {', '.join(p + '.txt' for p in PARTS)}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--words", type=int, required=True)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--jobs", type=int, required=True)
    parser.add_argument("--packages", default=os.path.join(HERE, "packages.txt"))
    args = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        with opened(args.cache):
            build(args)
    except Failure as failure:
        print(f"debian_corpus.sh: {failure}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno != errno.ENOSPC:
            print(f"debian_corpus.sh: {error}", file=sys.stderr)
            return 1
        print(f"debian_corpus.sh: the disk is full: {args.cache} and {args.out} need about 1 GB. What "
              "is there is kept: the same command goes on.", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print("\ndebian_corpus.sh: stopped; the same command goes on", file=sys.stderr)
        return 128 + stopped.args[0]
    return 0


if __name__ == "__main__":
    sys.exit(main())
