"""Reads the lines of experts_bench and torch_experts.py; writes them side by side as Markdown."""

import sys

# Ours with matrices of bf16 stands beside PyTorch's, whose activations are bf16, too.
BESIDE = {"tf32": "tf32", "fp32": "fp32", "bf16-weights": "bf16"}


def read(lines):
    ours, torch, notes = {}, {}, []
    for line in lines:
        words = line.split()
        if words and words[0] in ("ours", "torch") and len(words) >= 7:
            key = (words[1], *map(int, words[2:6]))
            (ours if words[0] == "ours" else torch)[key] = words[6:]
        elif line.strip():
            notes.append(line.strip())
    return ours, torch, notes


def ratio(a, b):
    try:
        return f"{float(a) / float(b):.2f}"
    except (ValueError, ZeroDivisionError):
        return "-"


def table(ours, torch):
    yield ("| kind | d | h | experts | tokens | forward TFLOP/s | of dense | of PyTorch | "
           "step TFLOP/s | of dense | of PyTorch |")
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for key, values in ours.items():
        cells = [key[0], *map(str, key[1:])]
        if len(values) < 3:
            yield "| " + " | ".join(cells + [f"no {values[0]}"] + ["-"] * 5) + " |"
            continue
        forward, step, dense = values
        other = torch.get((BESIDE[key[0]], *key[1:]), [])
        theirs = other if len(other) == 2 else ["-", "-"]
        cells += [forward, ratio(forward, dense), ratio(forward, theirs[0]),
                  step, ratio(step, dense), ratio(step, theirs[1])]
        yield "| " + " | ".join(cells) + " |"


def main():
    ours, torch, notes = read(sys.stdin)
    for line in notes + [""] + list(table(ours, torch)):
        print(line)
    return 0 if ours else 1


if __name__ == "__main__":
    sys.exit(main())
