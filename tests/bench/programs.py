"""Programs that measure on demand: a line with a name in, a line of JSON out (suite_main.cc).

So measurements of several programs can take turns, while what each has set up stays.
"""
import json
import os
import selectors
import subprocess
import tempfile
import time

# Whoever sets these wants other arithmetic than the machine's best; a benchmark doesn't.
UNSET = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS",
         "GOTO_NUM_THREADS")


def environment(**settings):
    """That of every program measured, ours and others'."""
    kept = {name: value for name, value in os.environ.items() if name not in UNSET}
    return {**kept, **settings}


class MeasurementError(Exception):
    pass


class Program:
    """Started at once; close() ends it."""

    def __init__(self, command, **settings):
        self.name = os.path.basename(command[-1] if command[0].endswith("python3") else command[0])
        self.errors = tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace")
        self.process = subprocess.Popen([*command, "--serve"], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=self.errors,
                                        env=environment(**settings))
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.process.stdout, selectors.EVENT_READ)

    def ask(self, line, timeout=240):
        """What it measured for the line, a dict. timeout: seconds."""
        try:
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()
            answer = self._read_line(time.monotonic() + timeout)
        except BrokenPipeError:
            answer = b""
        if not answer:
            raise MeasurementError(f"{self.name} ended while it measured {line}: {self._last_words()}")
        values = json.loads(answer)
        if "error" in values:
            raise MeasurementError(f"{self.name}: {values['error']}")
        return values

    def _read_line(self, deadline):
        """Empty at the end of the program's output."""
        answer = b""
        while not answer.endswith(b"\n"):
            if not self.selector.select(max(0, deadline - time.monotonic())):
                raise MeasurementError(f"{self.name} gave no answer in time: {self._last_words()}")
            piece = os.read(self.process.stdout.fileno(), 1 << 16)
            if not piece:
                return b""
            answer += piece
        return answer

    def _last_words(self):
        self.errors.seek(0)
        return self.errors.read()[-2000:].strip() or "it wrote no error"

    def close(self):
        self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.selector.close()
        self.errors.close()


class Programs:
    """By what they are called, started when they are first asked. A context: ends them all."""

    def __init__(self, binaries):
        self.binaries = binaries
        self.running = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def bench(self, name):
        """A benchmark of tests/bench that Bazel built."""
        return self._get(name, lambda: Program([os.path.join(self.binaries, "tests/bench", name)]))

    def torch(self):
        """The same in PyTorch, of torch_rivals.py."""
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "torch_rivals.py")
        return self._get("torch", lambda: Program(["/usr/bin/python3", script],
                                                  OMP_WAIT_POLICY="PASSIVE"))

    def training(self, name, start):
        """Training of ours (training.py), by any name."""
        return self._get(name, start)

    def _get(self, name, start):
        if name not in self.running:
            self.running[name] = start()
        return self.running[name]

    def close(self, keep=()):
        """Those that the next row doesn't need, so that it has the memory."""
        for name in [name for name in self.running if name not in keep]:
            self.running.pop(name).close()
