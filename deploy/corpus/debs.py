"""Debian packages: from apt's lists to unpacked files."""
import collections
import contextlib
import errno
import hashlib
import os
import shutil
import subprocess

Deb = collections.namedtuple("Deb", "version size sha256 path")


class Failure(Exception):
    """What the user reads, whole."""


def candidates(packages, folder):
    """{package: Deb} as apt would install them."""
    shown = run(["apt-cache", "show", "--no-all-versions"] + packages, check=False).stdout
    debs = {}
    for stanza in shown.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in stanza.splitlines()
                      if ": " in line and not line.startswith(" "))
        if not {"Package", "Version", "Size", "SHA256", "Filename"} <= fields.keys():
            continue
        path = os.path.join(folder, "{}_{}_{}.deb".format(
            fields["Package"], fields["Version"].replace(":", "%3a"), fields["Architecture"]))
        debs[fields["Package"]] = Deb(fields["Version"], int(fields["Size"]), fields["SHA256"], path)
    missing = [package for package in packages if package not in debs]
    if missing:
        raise Failure(f"apt knows no package {', '.join(missing)}; this needs Debian 12 with its main "
                      "section and up-to-date lists: run 'apt-get update' as root, then try again")
    return debs


def run(command, check=True, **options):
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            errors="replace", **options)
    if check and result.returncode != 0:
        if is_full(result.stderr):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise Failure(f"{' '.join(command[:2])} failed: {result.stderr.strip()}")
    return result


def is_full(said):
    """Whether a program complains about a full disk; the second is tar's."""
    return "No space left" in said or "Wrote only" in said


def is_whole(deb):
    """Whether it has been downloaded."""
    if not os.path.exists(deb.path) or os.path.getsize(deb.path) != deb.size:
        return False
    with open(deb.path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest() == deb.sha256


def download(package, deb, progress):
    """Unless it is there."""
    if is_whole(deb):
        return
    progress.say(f"{package}: downloading {deb.size / 1e6:.1f} MB")
    folder = os.path.dirname(deb.path)
    result = run(["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root",
                  f"{package}={deb.version}"], check=False, cwd=folder)
    if is_whole(deb):
        return
    said = [line for line in result.stderr.splitlines() if line.startswith("E:")]
    reason = said[-1][2:].strip() if said else "apt-get said nothing"
    if is_full(result.stderr):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    raise Failure(f"cannot download {package} {deb.version}: {reason}\n"
                  "  Is the network up? If the version is gone, run 'apt-get update' as root. What is "
                  "there is kept: the same command goes on.")


@contextlib.contextmanager
def unpacked(deb, folder):
    """The folder with the package's files, for as long as the context lasts."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        run(["dpkg-deb", "-x", deb.path, folder])
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
