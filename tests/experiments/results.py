"""Results of the runs of deploy/run_local.sh, and tables of them."""
import csv
import json
import os


def read_result(folder):
    """result.json of a finished run as one flat row, or None."""
    try:
        with open(os.path.join(folder, "result.json"), encoding="utf-8") as file:
            result = json.load(file)
    except FileNotFoundError:
        return None
    if result["phase"] != "FINISHED":
        return None
    balance = result.pop("balance")
    if balance:
        result.update({key: value for key, value in balance[0].items() if key != "layer"})
    return result


def write_csv(path, columns, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def markdown_table(head, rows):
    lines = [head, ["---"] * len(head)] + rows
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
