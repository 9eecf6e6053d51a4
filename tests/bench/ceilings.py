"""What the machine can do at most, measured again in every round of a row that compares with it."""
import statistics

# Name: (what it is called in the table, program, benchmark, counter).
CEILINGS = {
    "sgemm": ("sgemm 2048^3, all cores, GFLOP/s", "ceilings_bench", "Sgemm", "GFLOP/s"),
    "read": ("reading memory, all cores, GB/s", "ceilings_bench", "Read", "GB/s"),
    "triad": ("triad, all cores, GB/s", "ceilings_bench", "Triad", "GB/s"),
    "streamed triad": ("triad with non-temporal stores, all cores, GB/s", "ceilings_bench",
                       "TriadNonTemporal", "GB/s"),
    "tcp one way": ("raw TCP on loopback, 1 MiB messages one way, GB/s", "tcp_bench", "OneWay", "GB/s"),
    "tcp": ("raw TCP on loopback, 1 MiB messages there and back, four in flight, GB/s each way",
            "tcp_bench", "ThereAndBack", "GB/s"),
}
KEPT = ("ceilings_bench", "tcp_bench")


class Ceilings:
    def __init__(self, programs):
        self.programs = programs
        self.measured = {name: [] for name in CEILINGS}

    def measure(self, name):
        """In billions a second."""
        _, program, benchmark, counter = CEILINGS[name]
        value = self.programs.bench(program).ask(benchmark)[counter]
        self.measured[name].append(value)
        return value

    def lines(self):
        """(title, median over all rounds of all rows) of those that were measured."""
        return [(CEILINGS[name][0], statistics.median(values))
                for name, values in self.measured.items() if values]


class AllCeilings:
    """As a row of the suite, without a line of its own: every ceiling, whoever needs it."""

    name = "ceilings"
    title = "the machine's ceilings: the table's first lines"
    seconds = 0.4 * len(CEILINGS)

    def __init__(self, ceilings):
        self.ceilings = ceilings
        self.rounds = 5

    def measure(self, progress):
        for turn in range(self.rounds):
            for name in CEILINGS:
                progress(turn, name)
                self.ceilings.measure(name)
