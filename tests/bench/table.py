"""What was measured, as a table: name, ours, against, ratio, target."""
import csv
import dataclasses
from typing import Optional

COLUMNS = ["name", "ours", "against", "ratio", "target"]


@dataclasses.dataclass
class Line:
    name: str
    ours: float
    against: Optional[float] = None
    # At least so much is wanted of the ratio; at_most: of ours.
    target: Optional[float] = None
    at_most: bool = False

    @property
    def ratio(self):
        return self.ours / self.against if self.against else None

    @property
    def missed(self):
        if self.target is None:
            return False
        return self.ours > self.target if self.at_most else self.ratio < self.target


def number(value):
    """Four figures, or the whole number."""
    if value is None:
        return ""
    if value == round(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def fixed(value):
    return "" if value is None else f"{value:.2f}"


def text(lines):
    rows = [COLUMNS] + [
        [line.name, number(line.ours), number(line.against), fixed(line.ratio),
         number(line.target) + ("  missed" if line.missed else "")]
        for line in lines]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    return "".join(
        f"{row[0]:{widths[0]}}  " + "  ".join(f"{row[i]:>{widths[i]}}" for i in (1, 2, 3)) +
        f"  {row[4]}".rstrip() + "\n"
        for row in rows)


def write_csv(path, lines):
    with open(path, "w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(COLUMNS)
        for line in lines:
            writer.writerow([line.name, *("" if value is None else f"{value:.6g}" for value in
                                          (line.ours, line.against, line.ratio, line.target))])
