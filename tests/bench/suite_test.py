"""The suite's own logic: rounds, medians, the table, and what --only may name."""
import csv
import io
import math
import os
import re
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

import growth
import programs
import suite
import table
from rows import Row, best_other


def row(name="r", sides=None, **others):
    return Row(name, f"title of {name}", 0.5, sides or {"ours": lambda: 1, "theirs": lambda: 1},
               best_other, seconds=1, **others)


class RowTest(unittest.TestCase):
    def test_sides_take_turns_and_medians_are_compared(self):
        calls = []

        def side(name, values):
            values = iter(values)

            def measure():
                calls.append(name)
                return next(values)
            return measure

        line = row(sides={"a": side("a", [1, 9, 3]), "b": side("b", [4, 5, 100]),
                          "c": side("c", [6, 1, 2])}, rounds=3).measure(lambda *_: None)
        self.assertEqual(calls, ["a", "b", "c"] * 3)
        # The better of the others' medians, 5 and 2.
        self.assertEqual((line.ours, line.against), (3, 5))
        self.assertAlmostEqual(line.ratio, 0.6)

    def test_only_names_rows_in_the_tables_order(self):
        rows = [row("x"), row("y"), row("z")]
        self.assertEqual(suite.choose(rows, None), rows)
        self.assertEqual([r.name for r in suite.choose(rows, ["z", "x"])], ["x", "z"])
        with self.assertRaisesRegex(ValueError, "--only q: .* there are: x, y, z"):
            suite.choose(rows, ["x", "q"])

    def test_the_command_refuses_an_unknown_row_and_lists_the_names(self):
        script = os.path.join(os.path.dirname(os.path.abspath(suite.__file__)), "suite.py")
        refused = subprocess.run([sys.executable, script, "--only", "nothing"],
                                 stderr=subprocess.PIPE, text=True)
        self.assertEqual(refused.returncode, 2)
        self.assertRegex(refused.stderr, "--only nothing: .*adam, factored-adam")
        listed = subprocess.run([sys.executable, script, "--list"], stdout=subprocess.PIPE,
                                text=True, check=True)
        self.assertIn("\nadam ", listed.stdout)


class TableTest(unittest.TestCase):
    lines = [table.Line("ceiling, GB/s", 31.5), table.Line("met", 80, 100, 0.75),
             table.Line("not", 1500.25, 1000, 2), table.Line("counted", 3, target=0, at_most=True)]

    def test_text(self):
        printed = table.text(self.lines).splitlines()
        self.assertEqual(printed[0].split(), table.COLUMNS)
        self.assertEqual(printed[1].split(), ["ceiling,", "GB/s", "31.5"])
        self.assertEqual(printed[2].split(), ["met", "80", "100", "0.80", "0.75"])
        self.assertEqual(printed[3].split(), ["not", "1,500", "1,000", "1.50", "2", "missed"])
        self.assertEqual(printed[4].split(), ["counted", "3", "0", "missed"])

    def test_csv(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "t.csv")
            table.write_csv(path, self.lines)
            with open(path, encoding="utf-8", newline="") as file:
                rows = list(csv.reader(file))
        self.assertEqual(rows[0], ["name", "ours", "against", "ratio", "target"])
        self.assertEqual(rows[1], ["ceiling, GB/s", "31.5", "", "", ""])
        self.assertEqual(rows[3], ["not", "1500.25", "1000", "1.50025", "2"])


SERVED = """
import os, sys, time
for line in sys.stdin:
    word = line.strip()
    if word == "die":
        sys.exit("because of that")
    if word == "sleep":
        time.sleep(60)
    print({"fail": '{"error": "it cannot"}',
           "blas": '{"blas": "%s"}' % os.environ.get("OPENBLAS_CORETYPE")}.get(word, '{"seconds": 2}'),
          flush=True)
"""


class ProgramTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.script = os.path.join(self.folder.name, "served.py")
        with open(self.script, "w", encoding="utf-8") as file:
            file.write(SERVED)
        self.program = programs.Program([sys.executable, self.script])

    def tearDown(self):
        self.program.process.kill()
        self.program.close()

    def test_answers_line_by_line(self):
        self.assertEqual(self.program.ask("x"), {"seconds": 2})
        self.assertEqual(self.program.ask("y"), {"seconds": 2})

    def test_an_error_is_passed_on(self):
        with self.assertRaisesRegex(programs.MeasurementError, "it cannot"):
            self.program.ask("fail")
        self.assertEqual(self.program.ask("x"), {"seconds": 2})

    def test_a_program_that_ends_is_quoted(self):
        with self.assertRaisesRegex(programs.MeasurementError, "ended while .* die: because of that"):
            self.program.ask("die")

    def test_a_program_that_hangs_is_not_waited_for(self):
        with self.assertRaisesRegex(programs.MeasurementError, "no answer in time"):
            self.program.ask("sleep", timeout=0.2)

    def test_settings_of_the_blas_are_dropped(self):
        with mock.patch.dict(os.environ, OPENBLAS_CORETYPE="Prescott"):
            program = programs.Program([sys.executable, self.script])
        self.assertEqual(program.ask("blas"), {"blas": "None"})
        program.close()


class GrowthTest(unittest.TestCase):
    def test_words_of_a_step_are_those_of_the_job(self):
        for curve in growth.CURVES:
            for value in curve.values:
                point = curve.point(value)
                numbers = {name: int(re.search(rf"{name}: (\d+)", point.job).group(1))
                           for name in ("replicas", "lanes", "unroll")}
                self.assertEqual(math.prod(numbers.values()), point.words, f"{curve.name} {value}")

    def test_csv_is_read_as_it_was_written(self):
        rows = [dict(zip(growth.COLUMNS, ("servers", 8.0, 2048.0, 1234.5, 1e9, 2e8)))]
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "g.csv")
            growth.write_csv(path, rows)
            self.assertEqual(growth.read_csv(path), rows)


class ProgressTest(unittest.TestCase):
    def test_time_left_at_the_speed_so_far(self):
        now = [0]
        progress = suite.Progress([row("x", rounds=4), row("y", rounds=4)], out=io.StringIO(),
                                  clock=lambda: now[0])
        self.assertEqual(progress.remaining("x", 0), 8)
        # Half of x, 2 seconds' worth, took 6: three times as long as expected.
        now[0] = 6
        self.assertEqual(progress.remaining("x", 0.5), 18)
        self.assertEqual(progress.remaining("y", 0), 6)


if __name__ == "__main__":
    unittest.main()
