#!/usr/bin/python3
"""Words per second of training, side by side: our system as separate processes (coordinator, one
server, one worker), the same in one process, and PyTorch at its better setting: torch with all
cores, or torch with one thread and its BLAS with all.

Every round runs each of them once, in turn; the table shows medians, and ratios of medians. Our
figure is the mean over a whole run, the first step included; PyTorch's leaves two steps out.
"""
import argparse
import csv
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time

VOCABULARY = 8000
LANES = 64
UNROLL = 32
DROPOUT = 0.1

JOB = """
name: "bench" seed: 1
model {{
  d_model: {d_model}
  embedding_dropout: {dropout}
  layers {{ lstm {{ hidden: {d_model} forget_bias: 1 }} dropout: {dropout} residual: true }}
  layers {{
    moe {{
      experts: {experts} k: {k} hidden: {hidden} groups: 4 gating: GATING_NOISY_TOP_K
      w_importance: 0.1 w_load: 0.1 sigmoid_output: true
    }}
    dropout: {dropout} residual: true
  }}
  layers {{ lstm {{ hidden: {d_model} forget_bias: 1 }} dropout: {dropout} residual: true }}
}}
optimizer {{ adam {{}} schedule {{ base_rate: 0.001 constant {{}} }} }}
training {{ replicas: {replicas} waves: 2 lanes: {lanes} unroll: {unroll} steps: {steps} }}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bin", default="bazel-bin", help="where Bazel put the programs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24, help="training steps of each run")
    parser.add_argument("--threads", type=int, default=2, help="cores that each side may use")
    parser.add_argument("--d_model", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--csv", help="also write the table to this file")
    args = parser.parse_args()
    # Two replicas, so that one worker can use two cores; the step has the same words as PyTorch's.
    sizes = dict(d_model=args.d_model, hidden=args.hidden, experts=args.experts, k=args.k,
                 dropout=DROPOUT, replicas=2, lanes=LANES // 2, unroll=UNROLL, steps=args.steps)

    with tempfile.TemporaryDirectory(prefix="moe-bench-") as folder:
        data = prepare(args.bin, folder, sizes)
        job = os.path.join(folder, "job.textproto")
        with open(job, "w", encoding="utf-8") as out:
            out.write(JOB.format(**sizes))
        runs = {
            "processes": lambda n: processes(args, folder, job, data, n),
            "one process": lambda n: one_process(args, folder, job, data, n),
            "PyTorch, 2 threads": lambda n: pytorch(args, args.threads),
            "PyTorch, 1 thread": lambda n: pytorch(args, 1),  # its BLAS: all
        }
        words = {name: [] for name in runs}
        for n in range(args.rounds):
            for name, run in runs.items():
                words[name].append(run(n))
                print(f"round {n + 1}/{args.rounds}  {name}: {words[name][-1]:,.0f} words/s",
                      file=sys.stderr)

    median = {name: statistics.median(values) for name, values in words.items()}
    rival = max(median["PyTorch, 2 threads"], median["PyTorch, 1 thread"])
    label = f"d={args.d_model} h={args.hidden} n={args.experts} k={args.k}"
    rows = [(f"training, {name}, {label}", median[name], rival, median[name] / rival)
            for name in ("processes", "one process")]
    print(f"{'words/s, medians of ' + str(args.rounds):55} {'ours':>9} {'PyTorch':>9} {'ratio':>6}")
    for name, ours, against, ratio in rows:
        print(f"{name:55} {ours:9,.0f} {against:9,.0f} {ratio:6.2f}")
    if args.csv:
        with open(args.csv, "w", encoding="utf-8", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(["name", "ours", "against", "ratio", "target"])
            for name, ours, against, ratio in rows:
                writer.writerow([name, f"{ours:.1f}", f"{against:.1f}", f"{ratio:.3f}", ""])


def prepare(binaries, folder, sizes):
    """Random words: speed doesn't depend on what they say."""
    generator = random.Random(1)
    words = sizes["replicas"] * sizes["lanes"] * sizes["unroll"] * (sizes["steps"] + 1)
    names = [f"w{i}" for i in range(VOCABULARY - 2)]

    def text(count):
        line = [generator.choice(names) for _ in range(count)]
        return "\n".join(" ".join(line[i:i + 20]) for i in range(0, count, 20)) + "\n"

    paths = {}
    # Each word once more, so that the vocabulary is full.
    for split, content in (("train", " ".join(names) + "\n" + text(words)),
                           ("validation", text(40)), ("test", text(40))):
        paths[split] = os.path.join(folder, split + ".txt")
        with open(paths[split], "w", encoding="utf-8") as out:
            out.write(content)
    data = os.path.join(folder, "data")
    subprocess.run([os.path.join(binaries, "worker/data/prepare_text"), "--tokenized",
                    f"--vocabulary_size={VOCABULARY}", f"--out={data}"] +
                   [f"--{split}={path}" for split, path in paths.items()],
                   check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return data


def processes(args, folder, job, data, n):
    out = os.path.join(folder, f"processes-{n}")
    os.mkdir(out)
    port, result = os.path.join(out, "port"), os.path.join(out, "result.json")
    with open(os.path.join(out, "log"), "w", encoding="utf-8") as log:
        def start(program, *flags):
            return subprocess.Popen([os.path.join(args.bin, program), *flags],
                                    stdout=log, stderr=log)

        members = [start("server/coordinator/coordinator", f"--job={job}", "--listen=127.0.0.1:0",
                         f"--state_dir={out}/state", f"--checkpoint_dir={out}/checkpoints",
                         "--servers=1", "--workers=1", f"--port_file={port}",
                         f"--result_json={result}")]
        try:
            deadline = time.monotonic() + 30
            while not (os.path.exists(port) and os.path.getsize(port)):
                if time.monotonic() > deadline:
                    raise RuntimeError(f"the coordinator did not start; see {out}/log")
                time.sleep(0.05)
            with open(port, encoding="utf-8") as file:
                address = file.read().strip()
            common = [f"--coordinator={address}", f"--threads={args.threads}"]
            members.append(start("server/expert_server", "--name=s0", *common))
            members.append(start("worker/worker", "--name=w0", f"--data={data}", *common))
            if members[0].wait(timeout=600) != 0:
                raise RuntimeError(f"the job failed; see {out}/log")
        finally:
            for member in members:
                member.terminate()
            for member in members:
                member.wait(timeout=30)
    with open(result, encoding="utf-8") as file:
        return json.load(file)["words_per_second"]


def one_process(args, folder, job, data, n):
    run = subprocess.run([os.path.join(args.bin, "tests/cluster/train_in_process"), f"--job={job}",
                          f"--data={data}", f"--out={folder}/one-{n}",
                          f"--threads={args.threads}"],
                         check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return json.loads(run.stdout)["words_per_second"]


def pytorch(args, threads):
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "torch_step.py")
    run = subprocess.run(["/usr/bin/python3", script, f"--threads={threads}",
                          f"--d_model={args.d_model}", f"--hidden={args.hidden}",
                          f"--experts={args.experts}", f"--k={args.k}",
                          f"--vocabulary={VOCABULARY}", f"--lanes={LANES}", f"--unroll={UNROLL}",
                          f"--dropout={DROPOUT}"],
                         check=True, stdout=subprocess.PIPE, text=True,
                         env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE",
                              "OPENBLAS_NUM_THREADS": str(args.threads)})
    return float(run.stdout)


if __name__ == "__main__":
    main()
