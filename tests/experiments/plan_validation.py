#!/usr/bin/python3
"""Compares `moectl plan` with steps that are taken: the tables of docs/results/plan.md.

  tests/experiments/plan_validation.py [--message_gbps N] [--runs N] DATA [NAME...]

DATA: a folder of prepare_text. NAME: only these cases. Each case is a job on servers and workers with one
thread each, every one of them in a network namespace of its own with a link of so many bits a second, and
with a part of a processor where the case says so. A case's time and bytes are differences of a long run and
a short one, divided by the steps that the long one has more, so that the start and the end don't count; the
median of --runs such differences. The speed of a host is measured right before, within the host's limits.
Needs root, and the programs and tests/bench:kernel_bench below bazel-bin.
"""
import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile

from cluster import PROGRAMS, ROOT
from results import markdown_table
from shaped_hosts import Hosts

MIB = 1 << 20
# Of namespaces and bridges.
LATENCY = "30us"

WIDE = {"d_model: 128": "d_model: 512", "lstm { hidden: 128": "lstm { hidden: 512",
        "hidden: 256": "hidden: 1024"}
MANY = {"experts: 32": "experts: 256", "groups: 4": "groups: 16"}
TABLES = {"d_model: 128": "d_model: 128 vocabulary: 100000 tables { shards: 4 candidates: 2048 }"}
FACTORED = {"adam {}": "adam {} experts { beta1: 0 second_moment: SECOND_MOMENT_FACTORED }"}
# Name: the job file, what is changed in it, servers, workers, bits a second of each link, processors of
# each host, and the steps of both runs.
CASES = {
    "flat 32, 100 Mbit/s": ("kjv-moe", {}, 1, 1, 100e6, None, 2, 8),
    "flat 32, 2 + 2, 100 Mbit/s": ("kjv-moe", {}, 2, 2, 100e6, None, 2, 8),
    "flat 32, 3 + 2, 200 Mbit/s": ("kjv-moe", {}, 3, 2, 200e6, None, 2, 10),
    "hierarchical, 3 + 1, 100 Mbit/s": ("kjv-moe-h", {}, 3, 1, 100e6, None, 2, 8),
    "strict, 2 + 1, 100 Mbit/s": ("kjv-strict", {}, 2, 1, 100e6, None, 2, 8),
    "recurrent, 1 + 1, 100 Mbit/s": ("kjv-recurrent", {}, 1, 1, 100e6, None, 2, 6),
    "tables, 2 + 2, 100 Mbit/s": ("kjv-moe", TABLES, 2, 2, 100e6, None, 2, 8),
    "flat 256, d = 512, 2 + 1, 500 Mbit/s": ("kjv-moe", {**WIDE, **MANY, **FACTORED}, 2, 1, 500e6,
                                             None, 2, 6),
    "flat 32, 1 Gbit/s": ("kjv-moe", {}, 1, 1, 1e9, 1, 5, 30),
    "flat 32": ("kjv-moe", {}, 1, 1, None, 1, 5, 30),
    "one expert": ("kjv-dense", {}, 1, 1, None, 1, 5, 30),
    "flat 256": ("kjv-moe", MANY, 1, 1, None, 1, 5, 30),
    "flat 256, factored": ("kjv-moe", {**MANY, **FACTORED}, 1, 1, None, 1, 5, 30),
    "hierarchical": ("kjv-moe-h", {}, 1, 1, None, 1, 5, 30),
    "strict": ("kjv-strict", {}, 1, 1, None, 1, 5, 30),
    "recurrent": ("kjv-recurrent", {}, 1, 1, None, 1, 3, 15),
    "flat 32, d = 512": ("kjv-moe", WIDE, 1, 1, None, 1, 2, 8),
    "flat 256, d = 512": ("kjv-moe", {**WIDE, **MANY, **FACTORED}, 1, 1, None, 1, 2, 6),
    "dense only": ("ptb-zaremba-small", {}, 1, 1, None, 1, 5, 30),
    "tables": ("kjv-moe", TABLES, 1, 1, None, 1, 5, 30),
    "flat 32, 3 + 2, a third": ("kjv-moe", {}, 3, 2, None, 0.33, 3, 20),
    "flat 256, 2 + 2, a third": ("kjv-moe", MANY, 2, 2, None, 0.33, 3, 15),
}


def job_text(config, edits, steps):
    with open(os.path.join(ROOT, "deploy/configs", config + ".textproto"), encoding="utf-8") as file:
        text = file.read()
    for old, new in edits.items():
        assert old in text, (config, old)
        text = text.replace(old, new)
    text = re.sub(r"\n( *)(epochs|steps): \d+", r"\n\1steps: %d" % steps, text)
    return re.sub(r"(every_steps|evaluate_every): \d+", r"\1: 0", text)


def train(hosts, folder, job, data, servers, workers):
    """Seconds of all steps; bytes that each host has sent and received, servers first."""
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    result = os.path.join(folder, "result.json")
    address = hosts.hub_address() + ":7070"
    members = []

    def start(name, command):
        with open(os.path.join(folder, name + ".log"), "w", encoding="utf-8") as log:
            members.append(subprocess.Popen(command, stdout=log, stderr=log))

    def program(path, *flags):
        return ["setpriv", "--pdeathsig", "KILL", os.path.join(PROGRAMS, path), *flags]

    before = [hosts.bytes(i) for i in range(servers + workers)]
    start("coordinator", hosts.on_hub(program(
        "server/coordinator/coordinator", "--job", job, "--listen", address, "--insecure",
        "--state_dir", folder + "/state", "--checkpoint_dir", folder + "/checkpoints", "--servers",
        str(servers), "--workers", str(workers), "--result_json", result)))
    for i in range(servers):
        start("s%d" % i, hosts.on(i, program(
            "server/expert_server", "--name", "s%d" % i, "--threads", "1", "--coordinator", address,
            "--listen", hosts.address(i) + ":0", "--insecure", "--rendezvous_timeout", "10m")))
    for i in range(workers):
        start("w%d" % i, hosts.on(servers + i, program(
            "worker/worker", "--name", "w%d" % i, "--threads", "1", "--coordinator", address, "--data",
            data, "--step_timeout", "10m")))
    try:
        if any(member.wait(timeout=900) != 0 for member in members):
            raise SystemExit("a process failed; logs are in " + folder)
    finally:
        for member in members:
            member.kill()
            member.wait()
    after = [hosts.bytes(i) for i in range(servers + workers)]
    with open(result, encoding="utf-8") as file:
        words_per_second = json.load(file)["words_per_second"]
    moved = [[a - b for a, b in zip(*pair)] for pair in zip(after, before)]
    return words_per_second, moved


def bench(hosts, pattern, counter):
    """The best of some repetitions on a host."""
    output = subprocess.run(hosts.on(0, [
        os.path.join(PROGRAMS, "tests/bench/kernel_bench"), "--benchmark_filter=" + pattern,
        "--benchmark_repetitions=5", "--benchmark_min_time=0.1", "--benchmark_format=json"]),
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout
    return max(row[counter] for row in json.loads(output)["benchmarks"]
               if row["run_type"] == "iteration")


def speed(hosts):
    """GFLOP/s and GB/s of a host."""
    return (bench(hosts, "Gemm/threads:1/m:2048.*", "GFLOP/s"),
            bench(hosts, "ExpertForward/threads:1/d:512/h:1024/rows:1/kept:0.*", "weightGB/s"))


def plan(job, words, servers, workers, bits, gflops, memory_gbps, message_gbps):
    with open(job, encoding="utf-8") as file:
        own = "vocabulary:" in file.read()
    vocabulary = [] if own else ["--vocabulary", str(words)]
    planned = subprocess.run(
        [os.path.join(PROGRAMS, "client/moectl"), "plan", "--json", "--job", job, *vocabulary,
         "--servers", str(servers), "--workers", str(workers), "--threads", "1", "--nic",
         "%d" % (bits or 40e9), "--latency", LATENCY, "--gflops", "%g" % gflops, "--memory_gbps",
         "%g" % memory_gbps, "--message_gbps", "%g" % message_gbps],
        stdout=subprocess.PIPE, check=True)
    return json.loads(planned.stdout)


def row(name, data, words, args):
    config, edits, servers, workers, bits, processors, few, many = CASES[name]
    folder = tempfile.mkdtemp(prefix="plan-")
    with Hosts(servers + workers, bits, processors) as hosts:
        gflops, memory_gbps = speed(hosts)
        jobs = {}
        for steps in (few, many):
            jobs[steps] = os.path.join(folder, "%d.textproto" % steps)
            with open(jobs[steps], "w", encoding="utf-8") as file:
                file.write(job_text(config, edits, steps))
        planned = plan(jobs[many], words, servers, workers, bits, gflops,
                       memory_gbps, args.message_gbps * (processors or 1))
        seconds = []
        for _ in range(args.runs):
            taken = {}
            for steps in (few, many):
                words_per_second, moved = train(hosts, folder + "/run", jobs[steps], data, servers,
                                                workers)
                taken[steps] = (steps * planned["words"] / words_per_second, moved)
            seconds.append((taken[many][0] - taken[few][0]) / (many - few))
    moved = [[(b - a) / (many - few) for a, b in zip(*pair)]
             for pair in zip(taken[few][1], taken[many][1])]
    shutil.rmtree(folder)
    cells = [name]
    for kind, first, last in (("server", 0, servers), ("worker", servers, servers + workers)):
        hosts_of_kind = range(first, last)
        most = max(hosts_of_kind, key=lambda i: sum(moved[i]))
        member = planned["members"][most]
        assert member["member"].startswith(kind)
        computed = member["sent_bytes"] + member["received_bytes"]
        cells += ["%.2f" % (computed / MIB), "%.2f" % (sum(moved[most]) / MIB),
                  "%.2f" % (computed / sum(moved[most]))]
    measured = statistics.median(seconds)
    cells += ["%.1f" % gflops, "%.1f" % memory_gbps, "%.3f" % planned["seconds"], "%.3f" % measured,
              "%.2f" % (planned["seconds"] / measured), planned["limit"]]
    print("  ".join(cells), " ".join("%.3f" % s for s in seconds),
          {cause: round(s, 4) for cause, s in planned["waits_for"].items()}, file=sys.stderr,
          flush=True)
    return cells


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--message_gbps", type=float, default=1.5)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("data")
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    # Nothing stays behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    wrong = [name for name in args.names if name not in CASES]
    if wrong:
        raise SystemExit("no case %s; there are: %s" % (wrong[0], "; ".join(CASES)))
    data = os.path.abspath(args.data)
    with open(os.path.join(data, "meta.json"), encoding="utf-8") as file:
        words = json.load(file)["vocabulary"]["words"]
    rows = [row(name, data, words, args) for name in args.names or CASES]
    print(markdown_table(
        ["case", "server, MiB: computed", "moved", "ratio", "worker, MiB: computed", "moved", "ratio",
         "GFLOP/s", "GB/s", "s a step: computed", "taken", "ratio", "limit"], rows), end="")


if __name__ == "__main__":
    main()
