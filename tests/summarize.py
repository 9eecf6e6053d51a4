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
        self.logs = []
        self.xmls = []


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
                target.logs += [local_path(f["uri"]) for f in files if f["name"] == "test.log"]
                xmls = [local_path(f["uri"]) for f in files if f["name"] == "test.xml"]
                if int(key["testResult"].get("attempt", 1)) > 1:
                    target.xmls = target.xmls[:-1]
                target.xmls += xmls
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
            if case.find("failure") is not None or case.find("error") is not None:
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
        for path in target.xmls:
            try:
                p, f, s = count_cases(path)
            except (OSError, ElementTree.ParseError):
                continue
            passed, skipped = passed + p, skipped + s
            failed_here += f
        if target.status not in ("PASSED", "FLAKY") and not failed_here:
            failed_here = ["({}, no case reported a failure)".format(target.status.lower())]
        failed += len(failed_here)
        complaints += ["  {} {}".format(label, case) for case in failed_here]
        if failed_here:
            complaints += ["    log: " + log for log in target.logs[-1:]]
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
