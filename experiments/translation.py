"""What makes the colour translation converge: other constants, seeds and colours, in one table.

    python -m experiments.translation      # runs what is missing, or only the rows named

The table goes to outputs/tables/translation.md, its main rows to translation_summary.md.
"""

import statistics

import matplotlib.colors
import torch

import cyclegan_colors
import data
import runs
from experiments import common, pairs

PLAIN = {"INPUT_RANGE": (0.0, 1.0), "REFINE_FROM": 0.3, "REFINE_WEIGHT": 0.0}  # one cycle loss
FAST = PLAIN | {"EPOCHS": 8, "IMAGES_PER_EPOCH": 16_000, "BATCH_SIZE": 32, "LEARNING_RATE": 0.002}
FAST |= {"CYCLE_WEIGHT": 10.0}
USUAL = {"REFINE_FROM": 1.0, "BETA2": 0.999, "DECAY_FROM": 0.5}  # of Adam; beta1 never changes
LONGER = FAST | USUAL | {"EPOCHS": 16}
# The homework's losses, first weights, betas and rate, and the last weights (its epochs are 150).
RECIPE = {"EPOCHS": 12, "HE_WEIGHTS": False, "R1_WEIGHT": 0.0, "BETA1": 0.9, "CYCLE_WEIGHT": 0.0, "EMA_DECAY": 0.0}
RECIPE |= PLAIN | USUAL | {"DECAY_FROM": 1.0}


def complements() -> dict[str, tuple[str, ...]]:
    """In B each digit has its complement in A, 1 - RGB. White's would be black, and is grey."""
    b = 1 - data.palette("DOMAIN_A", data.DOMAIN_A)
    return {"DOMAIN_B": tuple("grey" if not color.any() else matplotlib.colors.to_hex(color.tolist()) for color in b)}


def drawn(seed: int) -> dict[str, tuple[str, ...]]:
    """Ten random colours for A, and in B a random derangement of them: each digit's colour changes.

    Uniform in RGB, none darker than 0.4 in its largest channel, no two nearer than 0.35: others are
    drawn anew.
    """
    generator, colors = torch.Generator().manual_seed(seed), []
    while len(colors) < 10:
        color = torch.rand(3, generator=generator)
        if color.max() >= 0.4 and all((color - other).norm() >= 0.35 for other in colors):
            colors.append(color)
    order = torch.arange(10)
    while (order == torch.arange(10)).any():
        order = torch.randperm(10, generator=generator)
    names = [matplotlib.colors.to_hex(color.tolist()) for color in colors]
    return {"DOMAIN_A": tuple(names), "DOMAIN_B": tuple(names[i] for i in order)}


RUNS = {  # name of the row → its runs
    "recipe of the homework": common.seeds(RECIPE, 0),
    "default constants": common.seeds({}, 0, 1, 2, 3, 4),
    "24 epochs": common.seeds({"EPOCHS": 24}, 0, 1, 2, 3, 4),
    "24 epochs, float32": common.seeds({"EPOCHS": 24, "PRECISION": "float32"}, 0),
    "24 epochs, narrower range": common.seeds({"EPOCHS": 24, "INPUT_RANGE": (-1.0, 3.0)}, 0),
    "pixels as they are": common.seeds(PLAIN | {"REFINE_WEIGHT": 40.0}, 0),
    "pixels as they are, `REFINE_WEIGHT = 0`": common.seeds(PLAIN | {"EPOCHS": 28}, 0),
    "fast": common.seeds(FAST, 0, 1, 2, 3, 4),
    "fast, `R1_WEIGHT = 0`": common.seeds(FAST | {"R1_WEIGHT": 0.0}, 0, 1, 2),
    "fast, `R1_WEIGHT = 0`, `REFINE_FROM = 1`": common.seeds(FAST | {"R1_WEIGHT": 0.0, "REFINE_FROM": 1.0}, 0, 1),
    "fast, complementary colours": common.seeds(FAST | complements(), 0),
    "fast, colours drawn at random": {i: FAST | drawn(i) for i in range(1, 11)},
    "longer, usual beta2": common.seeds(LONGER, 0, 1, 2, 3, 4),
}
ROWS = {row: (cyclegan_colors, edits_of) for row, edits_of in RUNS.items()} | {
    "trained on true pairs": (pairs, {0: {}})
}
SUMMARY = ("recipe of the homework", "default constants", "fast")  # of the README
SUMMARY += ("fast, colours drawn at random", "fast, `R1_WEIGHT = 0`")
DIRECTIONS = ("a_to_b", "b_to_a")
COLUMNS = {  # heading → (score, factor)
    "colour exact": ("exact", 100),
    "colour right": ("color", 100),
    "digit kept": ("digit", 100),
    "PSNR": ("psnr", 1),
}
PUBLISHED = {
    "a_to_b_color": "60",
    "b_to_a_color": "38",
}  # of the homework's published weights, after 150 full epochs; not run here


def passes(results: dict) -> bool:
    """Colours exact in 99.5% and a PSNR of 37 dB, in both directions.

    Also the digit kept within 0.5 points of the true targets', and no digit under 98% in either.
    """
    return all(
        results[f"{name}_exact"] >= 0.995
        and results[f"{name}_digit"] >= results[f"oracle_{name}_digit"] - 0.005
        and lowest(results, name) >= 0.98
        and results[f"{name}_psnr"] >= 37
        for name in DIRECTIONS
    )


def lowest(results: dict, direction: str) -> float:
    """The share of the digit that does worst, in an exact colour or in being seen by the judge."""
    return min(results[f"{direction}_exact_by_digit"] + results[f"{direction}_digit_by_digit"])


def table(rows: dict[str, list[dict]], summary: bool = False) -> str:
    """Markdown: the spread of the scores, the lowest digit of a run, how many runs pass, and times.

    Updates to 99% (both colours right, on the log's 2,000 images) and minutes are medians.
    `summary`: fewer columns.
    """
    scores = list(COLUMNS.items())[: 2 if summary else None]
    keys = [(f"{way}_{key}", factor) for _, (key, factor) in scores for way in DIRECTIONS]
    units = {"PSNR": "dB"}
    lines = [["", *(f"{name} {way}, {units.get(name, '%')}" for name, _ in scores for way in ("A → B", "B → A"))]]
    lines[0] += ["runs that pass", "minutes", *["lowest digit, %", "updates", "to 99%"] * (not summary)]
    first = next(iter(rows.values()))[0]["results"]
    for name, prefix in (("the image as it is", "identity_"), ("the true target", "oracle_"))[: 1 if summary else 2]:
        lines.append([name, *(common.spread([first[prefix + key]], factor) for key, factor in keys)])
    lines.append(["the homework's published weights", *(PUBLISHED.get(key, "–") for key, _ in keys)])
    for name, contents in rows.items():
        results = [content["results"] for content in contents]
        cells = [common.spread([r[key] for r in results], factor) for key, factor in keys]
        cells.append(f"{sum(map(passes, results))} of {len(results)}")
        cells.append(f"{statistics.median(content['seconds'] for content in contents) / 60:.1f}")
        cells.append(f"{100 * min(lowest(r, way) for r in results for way in DIRECTIONS):.1f}")
        cells.append(f"{contents[0]['history'][-1]['step']:,}")
        cells.append(to_99(contents))
        lines.append([name, *cells][: len(lines[0])])
    return common.markdown(lines)


def to_99(contents: list[dict]) -> str:
    """Median updates until both colours were 99% right, and minutes, if every run got there."""
    reached = [content["results"].get("updates_to_99") for content in contents]
    if None in reached:
        return "–"
    rows = [next(row for row in c["history"] if row["step"] == n) for c, n in zip(contents, reached, strict=True)]
    minutes = statistics.median(row["seconds"] for row in rows) / 60
    return f"{statistics.median(reached):,.0f} ({minutes:.1f} min)"


def main(*names: str) -> None:
    """Runs what is missing (of the rows named), and writes the tables."""
    rows = common.collect("translation", ROWS, names)
    main_rows = {name: rows[name] for name in SUMMARY if name in rows} or rows
    common.write("translation.md", table(rows), rows)
    common.write("translation_summary.md", table(main_rows, summary=True), main_rows)


if __name__ == "__main__":
    runs.command(main, rows=[common.slug(row) for row in ROWS])
