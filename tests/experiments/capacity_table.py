"""Table, CSV file and plot of capacity.sh, of the runs that are finished.

Usage: capacity_table.py OUT RESULTS NAME
"""
import json
import os
import sys

from results import markdown_table, read_result, write_csv

# (model, title, experts), in the order of the table. Dense models have none.
MODELS = [("moe-4", "MoE-4", 4), ("moe-16", "MoE-16", 16), ("moe-64", "MoE-64", 64),
          ("moe-256", "MoE-256", 256), ("moe-1024-h", "MoE-1024-h", 1024),
          ("moe-1-wide", "MoE-1-Wide", 0), ("moe-1-deep", "MoE-1-Deep", 0), ("4xlstm", "4xLSTM", 0),
          ("lstm-projected", "LSTM-projected", 0)]
COLUMNS = ["model", "experts", "parameters", "multiply_adds", "test_perplexity",
           "validation_perplexity", "cv_importance", "cv_load", "max_over_mean_load", "step",
           "words_per_second", "seconds", "digest"]


def read_models(out):
    """A row for each model that was described; without test_perplexity until its run is finished."""
    rows = []
    for model, title, experts in MODELS:
        try:
            with open(os.path.join(out, model + ".describe.json"), encoding="utf-8") as file:
                described = json.load(file)
        except FileNotFoundError:
            continue
        row = {"model": model, "title": title, "experts": experts,
               "parameters": described["parameters"], "multiply_adds": described["multiply_adds"]}
        row.update(read_result(os.path.join(out, model)) or {})
        rows.append(row)
    return rows


def table(rows):
    lines = []
    for row in rows:
        finished = "test_perplexity" in row
        sparse = finished and row["experts"] > 0
        lines.append([
            row["title"], f"{row['parameters']:,}", f"{row['multiply_adds']:,}",
            f"{row['test_perplexity']:.2f}" if finished else "",
            f"{row['validation_perplexity']:.2f}" if finished else "",
            *(f"{row[name]:.2f}" if sparse else ""
              for name in ("cv_importance", "cv_load", "max_over_mean_load")),
            f"{row['words_per_second']:,.0f}" if finished else ""])
    return markdown_table(["model", "parameters", "multiply-adds", "test perplexity",
                           "validation perplexity", "CV(Importance)", "CV(Load)", "max/mean load",
                           "words/s"], lines)


def margin(finished):
    """The best mixture against the best dense model, as a sentence."""
    mixtures = [row for row in finished if row["experts"] > 0]
    dense = [row for row in finished if row["experts"] == 0]
    if not mixtures or not dense:
        return ""
    best, rival = (min(rows, key=lambda row: row["test_perplexity"]) for rows in (mixtures, dense))
    lower = 100 * (1 - best["test_perplexity"] / rival["test_perplexity"])
    return (f"The best mixture, {best['title']}, has {best['test_perplexity']:.2f}; the best dense "
            f"model, {rival['title']}, has {rival['test_perplexity']:.2f}: {abs(lower):.1f} % "
            f"{'lower' if lower > 0 else 'higher'} with the mixture.\n\n")


def plot(path, name, finished):
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    mixtures = [row for row in finished if row["experts"] > 0]
    axes.plot([row["experts"] for row in mixtures], [row["test_perplexity"] for row in mixtures],
              "o-", color="black", label="mixtures of experts")
    for row in mixtures:
        axes.annotate(row["title"], (row["experts"], row["test_perplexity"]),
                      textcoords="offset points", xytext=(4, 6), fontsize=8)
    for style, row in zip(("--", "-.", ":", (0, (1, 3))),
                          [row for row in finished if row["experts"] == 0]):
        axes.axhline(row["test_perplexity"], linestyle=style, color="gray", label=row["title"])
    axes.set_xscale("log", base=4)
    axes.set_xlim(3, 2048)
    ticks = [row["experts"] for row in mixtures] or [4, 1024]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xlabel("experts")
    axes.set_ylabel("test perplexity")
    axes.set_title(f"Capacity at equal compute: {name}")
    axes.minorticks_off()
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    figure.tight_layout()
    # Without a date, so that equal results give equal files.
    figure.savefig(path, dpi=120, metadata={"Software": None})


def main():
    out, results, name = sys.argv[1:]
    rows = read_models(out)
    finished = [row for row in rows if "test_perplexity" in row]
    stem = f"capacity-{name}"
    path = os.path.join(results, stem)
    write_csv(path + ".csv", COLUMNS, finished)
    plot(path + ".png", name, finished)
    text = table(rows)
    steps = f" --steps {finished[0]['step']}" if finished else ""
    with open(path + ".md", "w", encoding="utf-8") as file:
        file.write(
            f"# Capacity at equal compute: {name}\n\n"
            "Figure 2 of Shazeer et al. 2017 in small: models of equal multiply-adds for each word, "
            "trained on the same text\nin the same way. Parameters and multiply-adds are without "
            "embedding and softmax (`moectl describe`); balance is\nthat of the test text, without "
            f"noise. Jobs: `{stem}/`. Made by\n\n```\ntests/experiments/capacity.sh --data DIR --name "
            f"{name}{steps}\n```\n\n{text}\n{margin(finished)}![plot]({stem}.png)\n")
    print("\n" + text)


if __name__ == "__main__":
    main()
