#!/usr/bin/python3
"""Steps of the paper's largest models with experts on disk: what they cost by the number of experts.

  tests/experiments/larger_than_memory.py DATA [--out DIR] [--results DIR] [--experts LIST]
                                          [--steps N] [--disk_gib N] [--memory_gib N]

DATA is a folder of prepare_text with a small held-out part. For each number of experts (default
131072,65536,4096,256) the hierarchical model of table 8 of Shazeer et al. 2017 trains for N steps
(default 8) of 128 words on two expert servers, one worker and the coordinator, with bf16 experts in
files of at most --disk_gib (default 20) a server. Then once more, stopped in the middle and resumed from
the checkpoint, to the same digest. Disk: the experts that are touched, 2 MiB each, and as much for a
checkpoint, and half of that for another one.

Writes larger_than_memory.{md,csv,png} to --results (default docs/results). Needs the programs below
bazel-bin, and for the plot the packages that deploy/install.sh experiments installs. With --memory_gib each server is in a cgroup of its own with so much memory, its part of the
file cache included, which needs the right to make one: the experts that are touched can then be made
more than memory. Runs that are finished stay in --out (default out/larger-than-memory) and aren't made
again.
"""
import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time

try:
    import matplotlib
except ModuleNotFoundError:
    raise SystemExit("the plot needs matplotlib: deploy/install.sh experiments")

from cluster import PROGRAMS, ROOT, Cluster
from memory_cgroup import MemoryCgroup
from results import markdown_table, write_csv

SERVERS = 2
COLUMNS = ["experts", "groups", "parameters", "steps", "words", "touched", "first_perplexity",
           "last_perplexity", "seconds_per_step", "disk_bytes", "checkpoint_bytes",
           "server_anonymous_bytes", "server_file_bytes", "worker_bytes", "digest", "resumed_digest"]
GIB = 1 << 30
# A step: 2 replicas * 8 lanes * 8 words.
REPLICAS, LANES, UNROLL = 2, 8, 8


def job_text(experts, steps):
    path = os.path.join(ROOT, "deploy/configs/paper/table8-moe-%d-h.textproto" % experts)
    with open(path, encoding="utf-8") as file:
        text = file.read()
    text = re.sub(r"^#.*\n", "", text, flags=re.M)
    for pattern, new in [
        (r"  vocabulary: 100000\n", ""),
        (r"candidates: \d+", "candidates: 1024"),
        (r"( +)hidden: 1024\n", r"\g<0>\1parameters: PARAMETERS_BFLOAT16\n"),
        (r"base_rate: [0-9.]+\n +inverse_sqrt \{.*?\}", "base_rate: 0.003"),
        (r"training \{(?s:.*?)\n\}", "training { replicas: %d waves: 2 lanes: %d unroll: %d "
         "steps: %d dense_shards: 4 }" % (REPLICAS, LANES, UNROLL, steps)),
        (r"checkpointing \{.*?\}\n", ""),
    ]:
        text, count = re.subn(pattern, new, text)
        assert count == 1, (pattern, count)
    return text


def write_job(path, experts, steps):
    with open(path, "w", encoding="utf-8") as file:
        file.write(job_text(experts, steps))


def read(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def rss(pid, kind):
    found = re.search(kind + r":\s+(\d+) kB", read("/proc/%d/status" % pid))
    return int(found[1]) * 1024 if found else 0


def disk_of(pid):
    """Bytes of the file without a name."""
    folder = "/proc/%d/fd" % pid
    total = 0
    try:
        for fd in os.listdir(folder):
            path = os.path.join(folder, fd)
            if "/experts-" in os.readlink(path):
                total += os.stat(path).st_blocks * 512
    except OSError:
        pass
    return total


class Run:
    """A run of the job in `folder` to its end, watched."""

    def __init__(self, folder, data, args, resume):
        self.peaks = {}
        self.losses = {}
        self.seconds = {}  # by step, as progress showed it
        disk = os.path.join(folder, "disk")
        os.makedirs(disk, exist_ok=True)
        with contextlib.ExitStack() as stack:
            cgroups = []
            for _ in range(SERVERS if args.memory_gib else 0):
                cgroups.append(stack.enter_context(
                    contextlib.closing(MemoryCgroup(int(args.memory_gib * GIB)))))
            cluster = stack.enter_context(Cluster(folder))
            cluster.start_all(
                os.path.join(folder, "job.textproto"), data, SERVERS, 1,
                ["--result_json", os.path.join(folder, "result.json")] +
                (["--resume"] if resume else []),
                ["--disk_dir", disk, "--disk_gib", str(args.disk_gib), "--rendezvous_timeout", "10m"],
                ["--threads", "1", "--step_timeout", "10m"], cgroups)
            self.begin = time.monotonic()
            while self.watch(cluster, folder):
                time.sleep(0.2)
            cluster.wait()

    def watch(self, cluster, folder):
        """Whether all processes live."""
        now = {"anonymous": 0, "file": 0, "disk": 0, "worker": 0}
        alive = True
        for pid, name in cluster.names.items():
            state = re.search(r"State:\s+(\w)", read("/proc/%d/status" % pid))
            alive = alive and state is not None and state[1] != "Z"
            if name.startswith("server"):
                now["anonymous"] += rss(pid, "RssAnon")
                now["file"] += rss(pid, "RssShmem") + rss(pid, "RssFile")
                now["disk"] += disk_of(pid)
            elif name.startswith("worker"):
                now["worker"] += rss(pid, "VmRSS")
        for key, value in now.items():
            self.peaks[key] = max(self.peaks.get(key, 0), value)
        for step, perplexity in re.findall(r"^step (\d+)/.*?train ppl ([0-9.,]+)",
                                           read(os.path.join(folder, "coordinator.log")), re.M):
            if step not in self.losses:
                self.losses[step] = float(perplexity.replace(",", ""))
                self.seconds[step] = time.monotonic() - self.begin
        return alive


def touched_experts(checkpoint):
    """Experts that a step has updated, by the headers of the checkpoint's files."""
    count = 0
    for name in os.listdir(checkpoint):
        if "-group" not in name:
            continue
        with open(os.path.join(checkpoint, name), "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        count += sum(1 for key, value in header["__metadata__"].items()
                     if key.endswith(".w1#count") and int(value) > 0)
    return count


def size_of(folder):
    return sum(os.stat(os.path.join(folder, name)).st_size for name in os.listdir(folder))


def measure(experts, args):
    folder = os.path.join(args.out, "moe-%d" % experts)
    row_path = os.path.join(folder, "row.json")
    if os.path.exists(row_path):
        return json.loads(read(row_path))
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    job = os.path.join(folder, "job.textproto")
    write_job(job, experts, args.steps)
    described = json.loads(subprocess.run(
        [os.path.join(PROGRAMS, "client/moectl"), "describe", "--json", "--job", job],
        stdout=subprocess.PIPE, check=True).stdout)
    run = Run(folder, args.data, args, resume=False)
    result = json.loads(read(os.path.join(folder, "result.json")))
    touched = touched_experts(result["checkpoint"])
    checkpoint_bytes = size_of(result["checkpoint"])
    shutil.rmtree(os.path.join(folder, "checkpoints"))
    write_job(job, experts, args.steps // 2)
    Run(folder, args.data, args, resume=False)
    write_job(job, experts, args.steps)
    Run(folder, args.data, args, resume=True)
    resumed = json.loads(read(os.path.join(folder, "result.json")))
    # The last one's line comes after its checkpoint.
    steps = sorted(run.losses, key=int)
    words = REPLICAS * LANES * UNROLL
    row = {
        "experts": experts,
        "groups": int(re.search(r"groups: (\d+)", read(job))[1]),
        "parameters": described["parameters"],
        "steps": args.steps,
        "words": args.steps * words,
        "touched": touched,
        "first_perplexity": run.losses[steps[0]],
        "last_perplexity": run.losses[steps[-1]],
        "seconds_per_step": ((run.seconds[steps[-2]] - run.seconds[steps[0]]) /
                             (int(steps[-2]) - int(steps[0]))),
        "disk_bytes": run.peaks["disk"],
        "checkpoint_bytes": checkpoint_bytes,
        "server_anonymous_bytes": run.peaks["anonymous"],
        "server_file_bytes": run.peaks["file"],
        "worker_bytes": run.peaks["worker"],
        "digest": result["digest"],
        "resumed_digest": resumed["digest"],
    }
    shutil.rmtree(os.path.join(folder, "checkpoints"))
    with open(row_path, "w", encoding="utf-8") as file:
        json.dump(row, file, indent=2)
    return row


def plot(path, rows):
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = sorted(rows, key=lambda row: row["experts"])
    figure, axes = pyplot.subplots(figsize=(7, 4))
    experts = [row["experts"] for row in rows]
    axes.plot(experts, [row["seconds_per_step"] for row in rows], "o-", color="black",
              label="seconds a step")
    axes.plot(experts, [row["disk_bytes"] / GIB for row in rows], "s--", color="gray",
              label="GiB on disk after the last step")
    axes.plot(experts, [2 * row["parameters"] / GIB for row in rows], "^:", color="gray",
              label="GiB of all parameters in bf16")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(experts, ["{:,}".format(n) for n in experts])
    axes.set_xlabel("experts")
    axes.set_title("Growth of cost with the number of experts")
    axes.minorticks_off()
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120, metadata={"Software": None})


def write(rows, results):
    stem = os.path.join(results, "larger_than_memory")
    write_csv(stem + ".csv", COLUMNS, rows)
    plot(stem + ".png", rows)
    gib = lambda count: "%.2f" % (count / GIB)
    table = markdown_table(
        ["experts", "parameters", "steps, words", "experts touched", "perplexity, first and last",
         "s a step", "disk, GiB", "checkpoint, GiB", "servers' own memory, GiB", "worker, GiB",
         "resumed to the same digest"],
        [["{:,}".format(row["experts"]), "%.3g bn" % (row["parameters"] / 1e9),
          "%d, %s" % (row["steps"], "{:,}".format(row["words"])), "{:,}".format(row["touched"]),
          "%.0f, %.0f" % (row["first_perplexity"], row["last_perplexity"]),
          "%.2f" % row["seconds_per_step"], gib(row["disk_bytes"]), gib(row["checkpoint_bytes"]),
          gib(row["server_anonymous_bytes"]), gib(row["worker_bytes"]),
          "yes" if row["digest"] == row["resumed_digest"] else "NO"] for row in rows])
    with open(stem + ".md", "w", encoding="utf-8") as file:
        file.write(
            "# Larger than memory\n\nThe hierarchical models of table 8 in Shazeer et al. 2017 (2 groups "
            "for each word, 2 experts of each, d = 512,\nh = 1024; experts in bf16, factored second "
            "moments) on two expert servers and one worker, with one thread each.\nThe servers keep "
            "experts on disk ([how](../design/capacity.md)). A step has %d words. Perplexities are those "
            "of the\ntraining text, with a sampled softmax; seconds a step don't count loading, "
            "evaluation and checkpoints; memory is the\nlargest while training, the servers' without "
            "the pages of the experts' files. Every run was made once more, stopped\nin the middle and "
            "resumed from its checkpoint. Made by\n\n```\ntests/experiments/larger_than_memory.py DATA"
            "\n```\n\n%s\n![plot](larger_than_memory.png)\n"
            % (REPLICAS * LANES * UNROLL, table))
    print(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--out", default="out/larger-than-memory")
    parser.add_argument("--results", default="docs/results")
    parser.add_argument("--experts", default="131072,65536,4096,256")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--disk_gib", type=float, default=20)
    parser.add_argument("--memory_gib", type=float, default=0)
    args = parser.parse_args()
    if args.steps < 2 or args.steps % 2:
        parser.error("--steps must be even: the run is resumed from its middle")
    os.makedirs(args.results, exist_ok=True)
    rows = []
    for experts in args.experts.split(","):
        print("== %s experts" % experts, file=sys.stderr, flush=True)
        rows.append(measure(int(experts), args))
    write(rows, args.results)


if __name__ == "__main__":
    main()
