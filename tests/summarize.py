"""Counts the test cases of one Bazel run and names those that failed.

Usage: summarize.py EVENTS_JSON BAZEL_EXIT_STATUS

Reads Bazel's build events, so it counts exactly this run's targets, cached or not, and notices a
target that never ran. Exits 1 when anything failed, Bazel itself included.
"""

import json
import os
import sys
import urllib.parse
import xml.etree.ElementTree as ElementTree


class Target:
    def __init__(self):
        self.status = None
        self.results = {}  # (run, shard) -> {"test.log": path, "test.xml": path}


def local_path(uri):
    return urllib.parse.unquote(urllib.parse.urlparse(uri).path)


def read_events(path):
    """Returns {label: Target} of all test targets, and the labels that failed to build."""
    tests = {}
    broken = set()
    with open(path) as events:
        for line in events:
            event = json.loads(line)
            key = event["id"]
            if "targetConfigured" in key and "configured" in event:
                if event["configured"].get("testSize"):
                    tests.setdefault(key["targetConfigured"]["label"], Target())
            elif "targetConfigured" in key and "aborted" in event:
                broken.add(key["targetConfigured"]["label"])
            elif "targetCompleted" in key:
                if not event.get("completed", {}).get("success"):
                    broken.add(key["targetCompleted"]["label"])
            elif "pattern" in key and "aborted" in event:
                broken.update(key["pattern"]["pattern"])
            elif "testResult" in key and "testResult" in event:
                # Of several attempts the last one's files stand.
                target = tests.setdefault(key["testResult"]["label"], Target())
                files = event["testResult"].get("testActionOutput", [])
                part = (key["testResult"].get("run"), key["testResult"].get("shard"))
                target.results[part] = {f["name"]: local_path(f["uri"]) for f in files}
            elif "testSummary" in key and "testSummary" in event:
                target = tests.setdefault(key["testSummary"]["label"], Target())
                target.status = event["testSummary"]["overallStatus"]
    return tests, broken


def count_cases(path):
    """Returns (passed, failed case names, skipped) of one test.xml."""
    passed, failed, skipped = 0, [], 0
    for suite in ElementTree.parse(path).iter("testsuite"):
        for case in suite.findall("testcase"):
            name = ".".join(filter(None, [suite.get("name"), case.get("name")]))
            error = case.find("error")
            if error is not None and suite.get("name") == case.get("name"):
                # Bazel's own record of a program that wrote none: it crashed, or is a script.
                failed.append("({})".format(error.get("message", "failed")))
            elif error is not None or case.find("failure") is not None:
                failed.append(name)
            elif case.find("skipped") is not None or case.get("status") == "notrun":
                skipped += 1
            else:
                passed += 1
    return passed, failed, skipped


def main():
    events, bazel_status = sys.argv[1], int(sys.argv[2])
    tests, broken = read_events(events)
    passed, failed, skipped = 0, 0, 0
    complaints = []
    for label, target in sorted(tests.items()):
        if target.status is None:
            broken.add(label)
            continue
        failed_here = []
        failed_logs = []
        for files in target.results.values():
            try:
                p, f, s = count_cases(files["test.xml"])
            except (KeyError, OSError, ElementTree.ParseError):
                p, f, s = 0, ["(no readable test.xml)"], 0
            passed, skipped = passed + p, skipped + s
            failed_here += f
            if f:
                failed_logs.append(files.get("test.log", "none"))
        if target.status not in ("PASSED", "FLAKY") and not failed_here:
            failed_here = ["({}, no case reported a failure)".format(target.status.lower())]
            failed_logs = [files.get("test.log", "none") for files in target.results.values()]
        failed += len(failed_here)
        complaints += ["  {} {}".format(label, case) for case in failed_here]
        complaints += ["    log: " + log for log in failed_logs]
    for label in sorted(broken - {l for l, t in tests.items() if t.status is not None}):
        failed += 1
        complaints.append("  {} (did not build)".format(label))
    if bazel_status != 0 and failed == 0:
        # 4: no tests were found.
        failed += 1
        complaints.append("  bazel itself ended with status {}; its message is above".format(bazel_status))
    if complaints:
        print("\nFailed:\n" + "\n".join(complaints))
    print("\n{} passed, {} failed".format(passed, failed) + (", {} skipped".format(skipped) if skipped else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
