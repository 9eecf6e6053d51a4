"""Training of ours, timed step by step: a job alone in one process, or as a cluster of processes.

Only steps count, as in PyTorch's figures; starting the processes and the first steps don't.
"""
import os
import random
import subprocess
import tempfile
import time

from programs import MeasurementError, Program, environment

MODEL = """
  layers {{ lstm {{ hidden: {d_model} forget_bias: 1 }} dropout: 0.1 residual: true }}
  layers {{ {moe} dropout: 0.1 residual: true }}
  layers {{ lstm {{ hidden: {d_model} forget_bias: 1 }} dropout: 0.1 residual: true }}
"""
JOB = """
name: "bench" seed: 1
model {{ d_model: {d_model} {extra} {layers} }}
optimizer {{ adam {{}} {experts_optimizer} schedule {{ base_rate: 0.001 constant {{}} }} }}
training {{ replicas: {replicas} waves: {waves} lanes: {lanes} unroll: {unroll} steps: 1000000 }}
"""
FACTORED = "experts { beta1: 0 second_moment: SECOND_MOMENT_FACTORED }"


def moe(experts, k, hidden, groups=1, k_primary=0, sigmoid=False):
    """A layer's mixture, in a job."""
    primary = f"k_primary: {k_primary} " if k_primary else ""
    return (f"moe {{ experts: {experts} k: {k} {primary}hidden: {hidden} groups: {groups} "
            "gating: GATING_NOISY_TOP_K w_importance: 0.1 w_load: 0.1 "
            f"sigmoid_output: {'true' if sigmoid else 'false'} }}")


def layer_job(d_model, mixture, lanes=64, unroll=32, experts_optimizer=""):
    """A model that is a MoE layer and a softmax over a few words, which costs next to nothing."""
    return JOB.format(d_model=d_model, extra="", layers=f"layers {{ {mixture} }}", replicas=1, waves=1,
                      lanes=lanes, unroll=unroll, experts_optimizer=experts_optimizer)


def model_job(d_model, mixture, lanes=64, unroll=32, replicas=1, waves=1):
    """LSTM-MoE-LSTM. lanes: of all replicas."""
    return JOB.format(d_model=d_model, extra="embedding_dropout: 0.1",
                      layers=MODEL.format(d_model=d_model, moe=mixture), replicas=replicas, waves=waves,
                      lanes=lanes // replicas, unroll=unroll, experts_optimizer="")


class Folder:
    """What runs need on disk; removed at the end."""

    def __init__(self, binaries):
        self.binaries = binaries
        self.folder = tempfile.TemporaryDirectory(prefix="moe-bench-")
        self.count = 0

    def data(self, vocabulary, words=1 << 18):
        """Random words, prepared: speed doesn't depend on what they say."""
        out = os.path.join(self.folder.name, f"data-{vocabulary}-{words}")
        if os.path.exists(out):
            return out
        generator = random.Random(1)
        # Two words are the vocabulary's own.
        names = [f"w{i}" for i in range(vocabulary - 2)]

        def text(count):
            line = generator.choices(names, k=count)
            return "\n".join(" ".join(line[i:i + 20]) for i in range(0, count, 20)) + "\n"

        splits = []
        # Each word once more, so that the vocabulary is full.
        for split, content in (("train", " ".join(names) + "\n" + text(words)),
                               ("validation", text(40)), ("test", text(40))):
            path = f"{out}-{split}.txt"
            with open(path, "w", encoding="utf-8") as file:
                file.write(content)
            splits.append(f"--{split}={path}")
        subprocess.run([os.path.join(self.binaries, "worker/data/prepare_text"), "--tokenized",
                        f"--vocabulary_size={vocabulary}", f"--out={out}", *splits],
                       check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return out

    def new(self):
        """An empty folder."""
        self.count += 1
        path = os.path.join(self.folder.name, f"run-{self.count}")
        os.mkdir(path)
        return path

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.folder.cleanup()


class Training:
    """A job that takes steps when asked. servers 0: in one process without a network."""

    def __init__(self, folder, job, words, vocabulary, threads, servers=0, preload=None):
        self.words = words
        self.members = []
        self.folder = folder.new()
        self.binaries = folder.binaries
        path = os.path.join(self.folder, "job.textproto")
        with open(path, "w", encoding="utf-8") as file:
            file.write(job)
        command = [os.path.join(self.binaries, "tests/bench/paced_training"),
                   f"--data={folder.data(vocabulary)}", f"--threads={threads}"]
        try:
            if servers == 0:
                command.append(f"--job={path}")
            else:
                command.append(f"--coordinator={self._start(path, servers, threads, preload)}")
            self.worker = Program(command, **(preload("worker") if preload else {}))
            self.step()  # touches all memory
        except MeasurementError as error:
            log = self._log()
            self.close()
            raise MeasurementError(f"{error}\n{log}") from None

    def _start(self, job, servers, threads, preload):
        """The cluster but for the worker; the coordinator's address."""
        def start(program, *flags, **settings):
            with open(os.path.join(self.folder, "log"), "ab") as log:
                self.members.append(subprocess.Popen(
                    [os.path.join(self.binaries, program), *flags], stdout=log, stderr=log,
                    env=environment(**settings)))

        port = os.path.join(self.folder, "port")
        start("server/coordinator/coordinator", f"--job={job}", "--listen=127.0.0.1:0",
              f"--state_dir={self.folder}/state", f"--checkpoint_dir={self.folder}/checkpoints",
              f"--servers={servers}", "--workers=1", f"--port_file={port}")
        deadline = time.monotonic() + 30
        while not (os.path.exists(port) and os.path.getsize(port)):
            if time.monotonic() > deadline or self.members[0].poll() is not None:
                raise MeasurementError("the coordinator did not start")
            time.sleep(0.02)
        with open(port, encoding="utf-8") as file:
            address = file.read().strip()
        for server in range(servers):
            start("server/expert_server", f"--name=s{server}", f"--coordinator={address}",
                  f"--threads={threads}", **(preload(f"server-{server}") if preload else {}))
        return address

    def step(self, steps=1):
        """Words a second."""
        return self.words / self.worker.ask(str(steps))["seconds"]

    def memory(self):
        """(all servers', the worker's) most resident bytes so far."""
        return (sum(_most_resident(server.pid) for server in self.members[1:]),
                _most_resident(self.worker.process.pid))

    def _log(self):
        try:
            with open(os.path.join(self.folder, "log"), encoding="utf-8", errors="replace") as file:
                return file.read()[-2000:]
        except FileNotFoundError:
            return ""

    def close(self):
        if hasattr(self, "worker"):
            self.worker.close()
        for member in reversed(self.members):
            member.kill()
        for member in self.members:
            member.wait()


def _most_resident(pid):
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    raise MeasurementError(f"process {pid} has ended")
