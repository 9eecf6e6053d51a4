"""tests/experiments/series.sh and the tables: what is skipped, continued, refused and counted.

deploy/run_local.sh is a stand-in that notes how it was called.
"""
import csv
import json
import os
import shutil
import subprocess
import tempfile
import unittest

import balance_losses_table
import capacity_table

RUN_LOCAL = """\
#!/bin/bash
echo "$*" >> calls
while (($#)); do
  [[ $1 == --out ]] && out=$2
  shift
done
name=${out##*/}
[[ ! -e stop-$name ]] || exit "$(<stop-$name)"
mkdir -p "$out"
touch "$out/job.textproto"
echo '{ "phase": "FINISHED" }' > "$out/result.json"
"""


class SeriesTest(unittest.TestCase):
    def setUp(self):
        self.root = tempfile.mkdtemp(dir=os.environ.get("TEST_TMPDIR"))
        os.makedirs(os.path.join(self.root, "tests/experiments"))
        shutil.copy("tests/experiments/series.sh", os.path.join(self.root, "tests/experiments"))
        shutil.copytree("deploy/lib", os.path.join(self.root, "deploy/lib"))
        self.write("deploy/run_local.sh", RUN_LOCAL)
        os.chmod(os.path.join(self.root, "deploy/run_local.sh"), 0o755)

    def write(self, name, contents):
        path = os.path.join(self.root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(contents)

    def series(self, resume=1, jobs=("a", "b", "c")):
        """(exit status, calls of run_local.sh, standard error)"""
        lines = ["set -euo pipefail", "source tests/experiments/series.sh",
                 f"open_series out {resume}"]
        lines += [f"train out {job[0]} --workers 1 <<< 'name: \"{job[0]}\" {job[1:]}'" for job in jobs]
        lines.append("end_series")
        self.write("calls", "")
        result = subprocess.run(["bash", "-c", "\n".join(lines)], cwd=self.root,
                                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        with open(os.path.join(self.root, "calls")) as file:
            return result.returncode, file.read().splitlines(), result.stderr

    def test_runs_in_order(self):
        status, calls, _ = self.series(resume=0)
        self.assertEqual(status, 0)
        self.assertEqual(calls, [f"--job out/{n}.textproto --out out/{n} --workers 1" for n in "abc"])

    def test_finished_runs_are_skipped(self):
        self.series(jobs=("a", "b"))
        _, calls, _ = self.series()
        self.assertEqual(calls, ["--job out/c.textproto --out out/c --workers 1"])

    def test_an_interrupted_run_goes_on_from_its_checkpoint(self):
        self.write("stop-b", "130")
        status, calls, _ = self.series()
        self.assertEqual((status, len(calls)), (130, 2))
        os.remove(os.path.join(self.root, "stop-b"))
        self.write("out/b/checkpoints/step-00000010/manifest.json", "{}")
        status, calls, _ = self.series()
        self.assertEqual(status, 0)
        self.assertEqual(calls, ["--resume --out out/b --workers 1",
                                 "--job out/c.textproto --out out/c --workers 1"])

    def test_a_run_that_fails_does_not_stop_the_others(self):
        self.write("stop-a", "1")
        status, calls, error = self.series()
        self.assertEqual((status, len(calls)), (1, 3))
        self.assertIn("failed: a; --resume tries them again", error)

    def test_only_resume_goes_on(self):
        self.series(jobs=("a",))
        status, calls, error = self.series(resume=0)
        self.assertEqual((status, calls), (1, []))
        self.assertIn("already holds runs: go on with them by --resume", error)

    def test_another_job_is_refused(self):
        self.series(jobs=("a",))
        status, calls, error = self.series(jobs=("a seed: 2",))
        self.assertEqual((status, calls), (1, []))
        self.assertIn("> name: \"a\"  seed: 2", error)
        self.assertIn("out/a was begun with another job", error)


def result(perplexity, balance=True, phase="FINISHED"):
    layers = [{"layer": 1, "cv_importance": 0.25, "cv_load": 0.5, "max_over_mean_load": 1.5}]
    return json.dumps({"phase": phase, "step": 7, "test_perplexity": perplexity,
                       "validation_perplexity": perplexity + 1, "digest": "abc",
                       "balance": layers if balance else [], "words_per_second": 5000.0,
                       "seconds": 60.0})


class TablesTest(unittest.TestCase):
    def setUp(self):
        self.root = tempfile.mkdtemp(dir=os.environ.get("TEST_TMPDIR"))

    def write(self, name, contents):
        path = os.path.join(self.root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(contents)

    def test_balance_losses(self):
        step = "step {0}/9  epoch 1  words/s 9  train ppl 9  lr 1  moe1: CV(imp) {0} CV(load) 1 max/mean 2\n"
        for name, perplexity in (("importance-0-load-0-seed-1", 40.0), ("importance-0-load-0-seed-2", 42.0),
                                 ("importance-0.1-load-0.1-seed-1", 30.0)):
            self.write(f"{name}/result.json", result(perplexity))
            self.write(f"{name}/logs/progress.log", "training\n" + "".join(map(step.format, range(1, 101))))
        self.write("importance-1-load-1-seed-1/result.json", result(0.0, phase="FAILED"))
        rows = balance_losses_table.read_runs(self.root)
        self.assertEqual([(row["w_load"], row["seed"]) for row in rows],
                         [("0", "1"), ("0", "2"), ("0.1", "1")])
        # The mean of the last 60 lines.
        self.assertEqual(rows[0]["training_cv_importance"], 70.5)
        lines = balance_losses_table.table(rows).splitlines()
        self.assertEqual(lines[2], "| 0 | 0 | 41.00 | 70.50 | 1.00 | 2.00 | 0.25 | 0.50 | 1.50 | "
                                   "39.8 / 3.04 / 3.01 / 17.8 |")
        self.assertEqual(len(lines), 4)

    def test_capacity(self):
        described = '{"parameters": 1234567, "multiply_adds": 524288}'
        for model, perplexity in (("moe-4", 90.0), ("moe-64", 80.0), ("4xlstm", 100.0), ("moe-16", None)):
            self.write(model + ".describe.json", described)
            if perplexity:
                self.write(model + "/result.json", result(perplexity, balance=model != "4xlstm"))
        rows = capacity_table.read_models(self.root)
        self.assertEqual([row["model"] for row in rows], ["moe-4", "moe-16", "moe-64", "4xlstm"])
        lines = capacity_table.table(rows).splitlines()
        self.assertEqual(lines[2], "| MoE-4 | 1,234,567 | 524,288 | 90.00 | 91.00 | 0.25 | 0.50 | 1.50 "
                                   "| 5,000 |")
        self.assertEqual(lines[3], "| MoE-16 | 1,234,567 | 524,288 |  |  |  |  |  |  |")
        self.assertEqual(lines[5], "| 4xLSTM | 1,234,567 | 524,288 | 100.00 | 101.00 |  |  |  | 5,000 |")
        finished = [row for row in rows if "test_perplexity" in row]
        self.assertIn("MoE-64, has 80.00; the best dense model, 4xLSTM, has 100.00: 20.0 % lower",
                      capacity_table.margin(finished))
        self.assertEqual(capacity_table.margin(finished[:2]), "")
        capacity_table.write_csv(os.path.join(self.root, "x.csv"), capacity_table.COLUMNS, finished)
        with open(os.path.join(self.root, "x.csv")) as file:
            read = list(csv.DictReader(file))
        self.assertEqual(read[1]["test_perplexity"], "80.0")


if __name__ == "__main__":
    unittest.main()
