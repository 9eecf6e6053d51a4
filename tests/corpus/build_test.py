"""deploy/corpus/build.py from end to end, on packages made here: apt is a stand-in, dpkg-deb real."""
import contextlib
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

import build

LIST = """\
# package  reader  files            licence
one-doc    html    usr/*.html       GPL-2+
two-doc    text    usr/*.txt,*.txt.gz  GFDL-1.2+, no invariant sections
"""
SCRIPT = "deploy/debian_corpus.sh"


def text(document):
    """Of letters alone, because digits don't count."""
    letters = "".join(chr(ord("a") + int(digit)) for digit in str(document))
    return [f"The {letters} {p} is the name of it, and so it has to be found in what is read."
            for p in ("first", "second", "third")]


class BuildTest(unittest.TestCase):
    def setUp(self):
        self.root = tempfile.mkdtemp(dir=os.environ.get("TEST_TMPDIR"))
        self.mirror = os.path.join(self.root, "mirror")
        os.makedirs(self.mirror)
        self.package("one-doc", "1:2.0", {f"usr/share/doc/one-doc/{i}.html":
                                          "".join(f"<p>{p}" for p in text(i)) for i in range(40)})
        self.package("two-doc", "3", {f"usr/share/doc/two-doc/{i}.txt": "\n\n".join(text(i))
                                      for i in range(30, 60)})
        self.fake_apt()
        self.list = os.path.join(self.root, "packages.txt")
        with open(self.list, "w") as file:
            file.write(LIST)
        self.path = os.environ["PATH"]
        os.environ["PATH"] = os.path.join(self.root, "bin") + ":" + self.path
        self.addCleanup(os.environ.__setitem__, "PATH", self.path)

    def package(self, name, version, files):
        tree = os.path.join(self.root, "tree-" + name)
        files = dict(files)
        files[f"usr/share/doc/{name}/copyright"] = "It is free.\n"
        files["DEBIAN/control"] = (f"Package: {name}\nVersion: {version}\nArchitecture: all\n"
                                   "Maintainer: nobody <nobody@example.org>\nDescription: test\n")
        for path, contents in files.items():
            path = os.path.join(tree, path)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w") as file:
                file.write(contents)
        deb = f"{name}_{version.replace(':', '%3a')}_all.deb"
        subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tree, os.path.join(self.mirror, deb)],
                       check=True, stdout=subprocess.DEVNULL)

    def fake_apt(self):
        """apt-cache shows the mirror's packages, apt-get copies them from there and says so."""
        folder = os.path.join(self.root, "bin")
        os.makedirs(folder)
        stanzas = []
        for deb in sorted(os.listdir(self.mirror)):
            path = os.path.join(self.mirror, deb)
            with open(path, "rb") as file:
                data = file.read()
            name, version, _ = deb.split("_")
            stanzas.append(f"Package: {name}\nVersion: {version.replace('%3a', ':')}\n"
                           f"Architecture: all\nFilename: pool/{deb}\nSize: {len(data)}\n"
                           f"SHA256: {hashlib.sha256(data).hexdigest()}\nDescription: of it\n more\n")
        programs = {
            "apt-cache": "cat <<'END'\n" + "\n".join(stanzas) + "END\n",
            "apt-get": f"""\
if [ -e {self.root}/offline ]; then
  echo "E: Failed to fetch http://mirror/x  Could not connect" >&2
  exit 100
fi
for package; do :; done
echo "$package" >> {self.root}/fetched
cp {self.mirror}/"${{package%%=*}}"_* .
""",
        }
        for name, body in programs.items():
            path = os.path.join(folder, name)
            with open(path, "w") as file:
                file.write("#!/bin/sh\n" + body)
            os.chmod(path, 0o755)

    def run_build(self, *options, out="out"):
        """(exit status, standard output, standard error)"""
        stdout, stderr = io.StringIO(), io.StringIO()
        argv = ["build.py", "--out", os.path.join(self.root, out), "--cache",
                os.path.join(self.root, "cache"), "--packages", self.list, "--jobs", "2",
                *(options or ("--words", "2500"))]
        saved, sys.argv = sys.argv, argv
        try:
            with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
                status = build.main()
        finally:
            sys.argv = saved
        return status, stdout.getvalue(), stderr.getvalue()

    def read(self, name, out="out"):
        with open(os.path.join(self.root, out, name)) as file:
            return file.read()

    def touch(self, name):
        with open(os.path.join(self.root, name), "w"):
            pass

    def test_texts_readme_and_licences(self):
        status, said, error = self.run_build()
        self.assertEqual((status, error), (0, ""))
        lines = [line for part in ("train", "validation", "test")
                 for line in self.read(part + ".txt").splitlines() if line]
        # The documents 30 to 39 are in both packages.
        self.assertEqual(sorted(lines), sorted(p for i in range(60) for p in text(i)))
        documents = self.read("train.txt").strip().split("\n\n")
        self.assertIn(text(7), [document.splitlines() for document in documents])
        readme = self.read("README.md")
        self.assertIn("| one-doc | 1:2.0 |", readme)
        self.assertIn("| GFDL-1.2+, no invariant sections |", readme)
        self.assertIn(hashlib.sha256(self.read("train.txt").encode()).hexdigest(), readme)
        self.assertEqual(self.read("copyright/two-doc"), "It is free.\n")
        self.assertIn("2/2 two-doc: ", said)

    def test_same_packages_same_bytes(self):
        self.run_build()
        shutil.rmtree(os.path.join(self.root, "cache"))
        self.run_build("--words", "2500", "--jobs", "1", out="again")
        for name in ("train.txt", "validation.txt", "test.txt", "README.md"):
            self.assertEqual(self.read(name), self.read(name, "again"), name)

    def test_stops_at_the_wanted_words(self):
        status, said, _ = self.run_build("--words", "100")
        self.assertEqual(status, 0)
        self.assertIn("one-doc", said)
        self.assertNotIn("two-doc", said)

    def test_goes_on_where_it_was(self):
        self.touch("offline")
        status, _, error = self.run_build()
        self.assertEqual(status, 1)
        self.assertIn("cannot download one-doc 1:2.0: Failed to fetch", error)
        self.assertIn("Is the network up?", error)
        os.remove(os.path.join(self.root, "offline"))
        self.run_build("--words", "100")
        # The first package's text is there, the second's isn't.
        self.touch("offline")
        status, _, error = self.run_build()
        self.assertEqual(status, 1)
        self.assertIn("cannot download two-doc", error)
        self.assertFalse(os.path.exists(os.path.join(self.root, "cache", "unpacked")))
        os.remove(os.path.join(self.root, "offline"))
        self.assertEqual(self.run_build()[0], 0)
        self.assertEqual(self.read("../fetched"), "one-doc=1:2.0\ntwo-doc=3\n")

    def test_a_damaged_package_is_fetched_again(self):
        deb = os.path.join(self.root, "cache", "debs", "one-doc_1%3a2.0_all.deb")
        os.makedirs(os.path.dirname(deb))
        with open(deb, "w") as file:
            file.write("half of it")
        self.assertEqual(self.run_build()[0], 0)
        self.assertIn("one-doc", self.read("../fetched"))

    def test_unknown_package(self):
        with open(self.list, "a") as file:
            file.write("three-doc html *.html GPL-2+\n")
        status, _, error = self.run_build()
        self.assertEqual(status, 1)
        self.assertIn("apt knows no package three-doc", error)
        self.assertIn("apt-get update", error)

    def test_package_without_the_files(self):
        with open(self.list, "w") as file:
            file.write("one-doc html usr/*.htm GPL-2+\n")
        status, _, error = self.run_build()
        self.assertEqual(status, 1)
        self.assertIn("one-doc 1:2.0 has no file like usr/*.htm", error)

    def test_too_few_words(self):
        status, _, error = self.run_build("--words", "1000000")
        self.assertEqual(status, 1)
        self.assertRegex(error, r"give [\d,]+ words only")
        self.assertFalse(os.path.exists(os.path.join(self.root, "out", "README.md")))

    def test_full_disk(self):
        for program, complaint in (("dpkg-deb", "tar: x: Wrote only 7680 of 10240 bytes"),
                                   ("apt-get", "E: write - write (28: No space left on device)")):
            shutil.rmtree(os.path.join(self.root, "cache"), ignore_errors=True)
            path = os.path.join(self.root, "bin", program)
            with open(path, "w") as file:
                file.write(f"#!/bin/sh\necho '{complaint}' >&2\nexit 2\n")
            os.chmod(path, 0o755)
            status, _, error = self.run_build()
            self.assertEqual(status, 1)
            self.assertIn("the disk is full", error)

    def test_script_refuses_wrong_options(self):
        for options, error in [([], "--out"), (["--out", "x", "--words", "0"], "--words is '0'"),
                               (["--frob"], "unknown option: --frob"), (["--out"], "needs a value")]:
            result = subprocess.run(["bash", SCRIPT, *options], stderr=subprocess.PIPE, text=True)
            self.assertEqual(result.returncode, 2)
            self.assertIn(error, result.stderr)

    def test_script_helps(self):
        result = subprocess.run(["bash", SCRIPT, "--help"], stdout=subprocess.PIPE, text=True)
        self.assertEqual(result.returncode, 0)
        for option in ("--out", "--words", "--cache", "--jobs", "--help"):
            self.assertIn("  " + option, result.stdout)


if __name__ == "__main__":
    unittest.main()
