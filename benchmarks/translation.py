"""What makes the colour translation converge: cyclegan_colors.py with other constants and seeds, in one table.

    python -m benchmarks.translation

Each run leaves its metrics.json below outputs/compare/ (seed 0 of the default constants is the script's own run, in
outputs/cyclegan_colors/). A run that is there with the same constants is read, not made again: delete it after a change
of the code. The table goes to outputs/compare/translation.md, its main rows to translation_summary.md.
"""

import math
import random
import statistics

import compare
import cyclegan_colors
import data
import runs
from data import matplotlib  # imported there whatever MPLBACKEND says

FAST = {  # small batches and a high rate that falls from early on
    "EPOCHS": 10,
    "IMAGES_PER_EPOCH": 4000,
    "BATCH_SIZE": 8,
    "LEARNING_RATE": 0.002,
    "DECAY_FROM": 0.6,
}


def spaced_hues() -> dict[str, tuple[str, ...]]:
    """Ten hues evenly around the wheel, pure and full; B has each moved by one digit, like the colours in data.py."""
    names = tuple(matplotlib.colors.to_hex(matplotlib.colors.hsv_to_rgb((digit / 10, 1, 1))) for digit in range(10))
    return {"DOMAIN_A": names, "DOMAIN_B": (*names[1:], names[0])}


def derangement(names: tuple[str, ...], seed: int) -> dict[str, tuple[str, ...]]:
    """These colours, in B assigned at random so that no digit keeps its own."""
    shuffled, rng = list(names), random.Random(seed)
    while any(a == b for a, b in zip(names, shuffled, strict=True)):
        rng.shuffle(shuffled)
    return {"DOMAIN_A": names, "DOMAIN_B": tuple(shuffled)}


def random_names(seed: int) -> tuple[str, ...]:
    """Ten CSS colours at random, but bright enough to be seen and no two of them near."""
    names, rgb = [], matplotlib.colors.to_rgb
    for name in random.Random(seed).sample(sorted(matplotlib.colors.CSS4_COLORS), len(matplotlib.colors.CSS4_COLORS)):
        if max(rgb(name)) > 0.5 and all(math.dist(rgb(name), rgb(other)) > 0.3 for other in names):
            names.append(name)
    return tuple(names[:10])


# The homework's losses, first weights and beta (its epochs are 150).
RECIPE = {"HE_WEIGHTS": False, "R1_WEIGHT": 0.0, "BETA1": 0.9, "CYCLE_WEIGHT": 0.0}
DERANGED = derangement(data.DOMAIN_A, 0)
ROWS = {  # name of the row → (edits of the constants, seeds)
    "default constants": ({}, (0, 1, 2, 3, 4)),
    "ten evenly spaced hues": (spaced_hues(), (0,)),
    "a random derangement": (DERANGED, (0,)),
    "`CYCLE_WEIGHT = 10`": ({"CYCLE_WEIGHT": 10.0}, (0, 1)),
    "`CYCLE_WEIGHT = 0`": ({"CYCLE_WEIGHT": 0.0}, (0, 1)),
    "`HE_WEIGHTS = False`": ({"HE_WEIGHTS": False}, (0, 1)),
    "recipe of the homework": (RECIPE, (0, 1)),
    "recipe, `BETA1 = 0.5`": (RECIPE | {"BETA1": 0.5}, (0, 1)),
    "recipe, `R1_WEIGHT = 0.3`": (RECIPE | {"R1_WEIGHT": 0.3}, (0, 1)),
    "fast": (FAST, (0, 1, 2, 3, 4)),
    "fast, ten evenly spaced hues": (FAST | spaced_hues(), (0,)),
    "fast, a random derangement": (FAST | DERANGED, (0,)),
    "fast, ten random colours, deranged": (FAST | derangement(random_names(0), 0), (0, 1)),
    "fast, `CYCLE_WEIGHT = 10`": (FAST | {"CYCLE_WEIGHT": 10.0}, (0, 1)),
    "fast, `CYCLE_WEIGHT = 0`": (FAST | {"CYCLE_WEIGHT": 0.0}, (0, 1)),
    "fast, `HE_WEIGHTS = False`": (FAST | {"HE_WEIGHTS": False}, (0, 1)),
    "fast, `R1_WEIGHT = 0`": (FAST | {"R1_WEIGHT": 0.0}, (0, 1)),
    "fast, `BETA1 = 0.9`": (FAST | {"BETA1": 0.9}, (0, 1)),
}
SUMMARY = ("recipe of the homework", "default constants", "fast", "fast, `R1_WEIGHT = 0`")  # of the README
DIRECTIONS = ("a_to_b", "b_to_a")
SCORES = tuple((part, direction) for part in ("color", "digit") for direction in DIRECTIONS)
PUBLISHED = ("60", "38")  # colour right with the homework's published weights, after 150 full epochs; not run here


def passes(results: dict) -> bool:
    """Both ways: colour right in 99.5%, digit kept within 0.5 points of the oracle's, no digit under 98%."""
    return all(
        results[f"{name}_color"] >= 0.995
        and results[f"{name}_digit"] >= results[f"oracle_{name}_digit"] - 0.005
        and lowest(results, name) >= 0.98
        for name in DIRECTIONS
    )


def lowest(results: dict, direction: str) -> float:
    """The share of the digit that does worst, in its colour or in being seen by the judge."""
    return min(results[f"{direction}_color_by_digit"] + results[f"{direction}_digit_by_digit"])


def table(rows: dict[str, list[dict]], summary: bool = False) -> str:
    """Markdown: mean ± standard deviation over the seeds, the lowest digit of any, how many pass, and what it took.

    Updates to 99% (both colours, on the log's 2,000 images) and minutes are medians. `summary`: fewer rows and columns.
    """
    scores = SCORES[:2] if summary else SCORES
    parts = ("colour right",) if summary else ("colour right", "digit kept")
    lines = [["", *(f"{part} {way}, %" for part in parts for way in ("A → B", "B → A"))]]
    lines[0] += ["seeds that pass", "minutes", *["lowest digit, %", "updates", "to 99%"] * (not summary)]
    first = next(iter(rows.values()))[0]["results"]
    untrained = [("the image as it is", "identity_"), ("the true target", "oracle_")]
    for name, prefix in untrained[: 1 if summary else 2]:
        cells = [f"{100 * first[f'{prefix}{direction}_{part}']:.1f}" for part, direction in scores]
        lines.append([name, *cells])
    lines.append(["the homework's published weights", *PUBLISHED])
    for name, contents in rows.items():
        results = [content["results"] for content in contents]
        cells = [compare.spread([100 * r[f"{direction}_{part}"] for r in results]) for part, direction in scores]
        cells.append(f"{sum(map(passes, results))} of {len(results)}")
        cells.append(f"{statistics.median(content['seconds'] for content in contents) / 60:.1f}")
        cells.append(f"{100 * min(lowest(r, direction) for r in results for direction in DIRECTIONS):.1f}")
        cells.append(f"{contents[0]['history'][-1]['step']:,}")
        cells.append(to_99(contents))
        lines.append([name, *cells])
    lines = [line[: len(lines[0])] + ["–"] * (len(lines[0]) - len(line)) for line in lines]
    lines.insert(1, ["---", *["---:"] * (len(lines[0]) - 1)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def tables(rows: dict[str, list[dict]]) -> dict[str, str]:
    """File name → Markdown."""
    main_rows = {name: rows[name] for name in SUMMARY if name in rows}
    return {"translation.md": table(rows), "translation_summary.md": table(main_rows or rows, summary=True)}


def to_99(contents: list[dict]) -> str:
    """Updates until both colours were 99% right, and the minutes that took: medians, if every run got there."""
    reached = [content["results"]["updates_to_99"] for content in contents]
    if None in reached:
        return "–"
    rows = [next(row for row in c["history"] if row["step"] == n) for c, n in zip(contents, reached, strict=True)]
    minutes = statistics.median(row["seconds"] for row in rows) / 60
    return f"{statistics.median(reached):,.0f} ({minutes:.1f} min)"


def run(name: str, edits: dict, seed: int) -> dict:
    """The content of metrics.json of one run: read if it is there with these constants, else made."""
    short = name.replace("`", "").replace(" = ", "=").replace(", ", "_").replace(" ", "-")
    folder = compare.OUTPUT_DIR / f"cyclegan_colors_{short}_SEED={seed}"
    if not edits and seed == cyclegan_colors.SEED:
        folder = cyclegan_colors.OUTPUT_DIR
    names = ["updates_to_99", *(f"{direction}_{part}" for part, direction in SCORES)]
    return compare.run(cyclegan_colors, folder, edits | {"SEED": seed}, data.DOMAINS, names)


def main() -> None:
    """Runs or reads every row, prints the table after each row, and saves it at the end."""
    rows = {}
    for name, (edits, seeds) in ROWS.items():
        rows[name] = [run(name, edits, seed) for seed in seeds]
        print(f"\n{table(rows)}", flush=True)
    for file, text in tables(rows).items():
        with runs.atomic_write(compare.OUTPUT_DIR / file) as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    runs.command(main)
