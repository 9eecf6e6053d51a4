#!/usr/bin/python3
"""What the members of short runs use of memory, beside what it is computed to be: the table of
docs/design/memory.md.

  tests/experiments/memory.py DATA [NAME...]    DATA: a folder of prepare_text

Trains each job for a few steps on this machine, every server and worker a process with one thread,
and compares the largest resident size of each with `moectl describe`. NAME: only these jobs. Needs the
programs below bazel-bin. Of a server with experts on disk the pages of its file don't count, which the
kernel may take back; its size is then the largest of what was seen every few milliseconds.
"""
import json
import os
import re
import subprocess
import sys
import tempfile
import time

from cluster import PROGRAMS, ROOT, Cluster
from results import markdown_table

MIB = 1 << 20
STEPS = 10

# More words than the text has: the rows of the others are there, and candidates.
TABLES = {"d_model: 128": "d_model: 128 vocabulary: 100000 tables { shards: 4 candidates: 8192 }"}
# Three replicas of a worker are two nodes of the replica tree.
MANY_CANDIDATES = {
    "d_model: 128": "d_model: 128 vocabulary: 200000 tables { shards: 8 candidates: 32768 }",
    "adam {}": "adam {} tables { beta1: 0 second_moment: SECOND_MOMENT_PER_ROW }",
    "replicas: 2": "replicas: 6",
    "lanes: 32": "lanes: 8",
}

ALL_STATES = {"      kept_states: 6\n": ""}
LONG_RECURRENT = {"lanes: 32": "lanes: 256"}
# The paper's appendix D: experts of 2 bytes, without a first moment.
BFLOAT16 = {
    "experts: 32": "experts: 256 parameters: PARAMETERS_BFLOAT16",
    "groups: 4": "groups: 16",
    "adam {}": "adam {} experts { beta1: 0 second_moment: SECOND_MOMENT_FACTORED }",
}
FLAT_256 = {"experts: 32": "experts: 256", "groups: 4": "groups: 16"}
LONG = {"lanes: 32": "lanes: 256", "hidden: 256": "hidden: 512"}
ACTIVATION_MIB = 64

# Name: the job file, what is changed in it, servers and workers, and what limits the servers, if anything
# (limits).
JOBS = {
    "tiny": ("tiny", {}, 2, 2),
    "flat 32": ("kjv-moe", {}, 1, 1),
    "flat 32, cut": ("kjv-moe", {}, 2, 2),
    "flat 256": ("kjv-moe", FLAT_256, 1, 1),
    "flat 256, cut": ("kjv-moe", FLAT_256, 2, 2),
    "flat 256, bf16": ("kjv-moe", BFLOAT16, 1, 1),
    "flat 256, on disk": ("kjv-moe", FLAT_256, 1, 1, "disk"),
    "hierarchical": ("kjv-moe-h", {}, 1, 1),
    "hierarchical, long": ("kjv-moe-h", {"lanes: 32": "lanes: 256"}, 1, 1),
    "strict": ("kjv-strict", {}, 1, 1),
    "one expert": ("kjv-dense", {}, 1, 1),
    "long": ("kjv-moe", LONG, 1, 1),
    "long, cut": ("kjv-moe", LONG, 2, 2),
    "long, 64 MiB of activations": ("kjv-moe", LONG, 1, 1, "activations"),
    "recurrent": ("kjv-recurrent", ALL_STATES, 1, 1),
    "recurrent, 6 states": ("kjv-recurrent", {}, 1, 1),
    "recurrent, long": ("kjv-recurrent", {**ALL_STATES, **LONG_RECURRENT}, 1, 1),
    "recurrent, long, 6 states": ("kjv-recurrent", LONG_RECURRENT, 1, 1),
    "dense only": ("ptb-zaremba-small", {}, 1, 1),
    "tables": ("kjv-moe", TABLES, 1, 1),
    "tables, cut": ("kjv-moe", MANY_CANDIDATES, 2, 2),
}


# Flags of a server whose files are in the folder, and of `moectl describe`.
def limits(key, folder):
    if key == "disk":
        disk = os.path.join(folder, "disk")
        os.mkdir(disk)
        return ["--disk_dir", disk, "--disk_gib", "4"], ["--disk"]
    if key == "activations":
        return (["--activation_gib", str(ACTIVATION_MIB / 1024)],
                ["--activation_gib", str(ACTIVATION_MIB / 1024)])
    return [], []


def job_text(config, edits):
    with open(os.path.join(ROOT, "deploy/configs", config + ".textproto"), encoding="utf-8") as file:
        text = file.read()
    for old, new in edits.items():
        assert old in text, (config, old)
        text = text.replace(old, new)
    text = re.sub(r"\n( *)(epochs|steps): \d+", r"\n\1steps: %d" % STEPS, text)
    return re.sub(r"every_steps: \d+", "every_steps: %d" % (STEPS // 2), text)


def resident_but_experts(pid):
    """Resident bytes outside of the file that holds experts."""
    counted, total = True, 0
    try:
        with open("/proc/%d/smaps" % pid, encoding="utf-8") as file:
            for line in file:
                if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                    counted = "/experts-" not in line
                elif counted and line.startswith("Rss:"):
                    total += int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return total


def measure(folder, job, data, servers, workers, server_flags):
    peaks = {}
    with Cluster(folder) as cluster:
        cluster.start_all(job, data, servers, workers, server_flags=server_flags)
        while "--disk_dir" in server_flags and all(map(resident_but_experts, cluster.names)):
            for pid, name in cluster.names.items():
                if name.startswith("server/"):
                    peaks[name] = max(peaks.get(name, 0), resident_but_experts(pid))
            time.sleep(0.005)
        return {**cluster.wait(), **peaks}


def compute(job, words, servers, workers, flags):
    with open(job, encoding="utf-8") as file:
        own = "vocabulary:" in file.read()
    vocabulary = [] if own else ["--vocabulary", str(words)]
    described = subprocess.run(
        [os.path.join(PROGRAMS, "client/moectl"), "describe", "--json", "--job", job, *vocabulary,
         "--servers", str(servers), "--workers", str(workers), "--threads", "1", *flags],
        stdout=subprocess.PIPE, check=True)
    return {member["member"]: member for member in json.loads(described.stdout)["memory"]}


def row(name, data, words):
    config, edits, servers, workers, *limit = JOBS[name]
    folder = tempfile.mkdtemp(prefix="memory-")
    job = os.path.join(folder, "job.textproto")
    with open(job, "w", encoding="utf-8") as file:
        file.write(job_text(config, edits))
    server_flags, describe_flags = limits(limit[0] if limit else None, folder)
    computed = compute(job, words, servers, workers, describe_flags)
    used = measure(folder, job, data, servers, workers, server_flags)
    subprocess.run(["rm", "-r", folder], check=True)
    cells = [name, "%d, %d" % (servers, workers)]
    for kind in ("server/", "worker/"):
        member = max((m for m in computed if m.startswith(kind)), key=lambda m: used[m])
        total, program = computed[member]["total"], computed[member]["program"]
        cells += ["%.0f" % (total / MIB), "%.0f" % (used[member] / MIB),
                  "%.2f" % ((total - program) / (used[member] - program))]
    return cells


def main():
    if len(sys.argv) < 2 or not all(name in JOBS for name in sys.argv[2:]):
        raise SystemExit(__doc__ + "\nJobs: " + "; ".join(JOBS))
    data = os.path.abspath(sys.argv[1])
    with open(os.path.join(data, "meta.json"), encoding="utf-8") as file:
        words = json.load(file)["vocabulary"]["words"]
    rows = []
    for name in sys.argv[2:] or JOBS:
        rows.append(row(name, data, words))
        print("  ".join(rows[-1]), file=sys.stderr, flush=True)
    print(markdown_table(["job", "servers, workers", "server: computed", "used", "ratio",
                          "worker: computed", "used", "ratio"], rows), end="")


if __name__ == "__main__":
    main()
