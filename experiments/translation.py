"""What makes the colour translation converge: other constants, seeds and colours, in one table.

    python -m experiments.translation      # runs what is missing, or the rows named

The table goes to outputs/tables/translation.md, its main rows to translation_summary.md.
"""

import itertools
import statistics

import matplotlib.colors
import torch

import cyclegan_colors
import data
import runs
from experiments import common, pairs


class PlainDiscriminator(cyclegan_colors.Discriminator):
    """The discriminator with torch's own first weights."""

    def __init__(self):
        super().__init__()
        for layer in self:
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()


HOMEWORK = {  # its recipe, binary cross-entropy alone, over halves of the images
    "EPOCHS": 150,
    "BATCH_SIZE": 120,
    "LEARNING_RATE": 0.0003,
    "BETA1": 0.9,
    "BETA2": 0.999,
    "R1_WEIGHT": 0.0,
    "CYCLE_WEIGHT": 0.0,
    "DECAY_FROM": 1.0,
    "EMA_DECAY": 0.0,
    "Discriminator": PlainDiscriminator,
    "LOG_EVERY": 250,  # once an epoch
}


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
    "homework": common.seeds(HOMEWORK, 0),
    "default constants": common.seeds({}, 0, 1, 2, 3, 4),
    "colours drawn at random": {i: drawn(i) for i in range(1, 11)},
    "no penalty, `R1_WEIGHT = 0`": common.seeds({"R1_WEIGHT": 0.0}, 0, 1, 2),
    "complementary colours": common.seeds(complements(), 0),
    "no cycle loss, `CYCLE_WEIGHT = 0`": common.seeds({"CYCLE_WEIGHT": 0.0}, 0),
    "Adam's usual `BETA1 = 0.9`": common.seeds({"BETA1": 0.9}, 0),
    "float32": common.seeds({"PRECISION": "float32"}, 0),
}
ROWS = {row: (cyclegan_colors, edits_of) for row, edits_of in RUNS.items()} | {
    "trained on true pairs": (pairs, {0: {}})
}
SUMMARY = (*list(RUNS)[:4],)  # of the README
DIRECTIONS = ("a_to_b", "b_to_a")
COLUMNS = {  # heading → (score, factor)
    "colour exact, %": ("exact", 100),
    "colour right, %": ("color", 100),
    "by colour alone, %": ("by_color_alone", 100),
    "digit kept, %": ("digit", 100),
    "PSNR, dB": ("psnr", 1),
}


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


def tables(rows: dict[str, list[dict]]) -> str:
    """Markdown, of each run the worse direction: the scores' spread, then updates and times.

    Updates to 99% (both colours right, on the log's 2,000 images), switches and minutes are medians.
    """
    scores = [["", *COLUMNS, "lowest digit, %"]]
    times = [["", "runs that pass", "updates", "99% right after", "colour switches", "minutes"]]
    first = next(iter(rows.values()))[0]["results"]
    for name, prefix in (("the image as it is", "identity_"), ("the true target", "oracle_")):
        scores.append([name, *(common.spread([worse(first, key, prefix)], factor) for key, factor in COLUMNS.values())])
    for name, contents in rows.items():
        results = [content["results"] for content in contents]
        cells = [common.spread([worse(r, key) for r in results], factor) for key, factor in COLUMNS.values()]
        scores.append([name, *cells, f"{100 * min(lowest(r, way) for r in results for way in DIRECTIONS):.1f}"])
        updates = f"{contents[0]['history'][-1]['step']:,}"
        times.append([name, passing(results), updates, to_99(contents), switches(contents), minutes(contents)])
    return f"{common.markdown(scores)}\n{common.markdown(times)}"


def summary(rows: dict[str, list[dict]]) -> str:
    """Markdown for the README: again the worse direction of each run."""
    lines = [["", "colour exact, %", "colour right, %", "runs that pass", "minutes"]]
    for name, contents in rows.items():
        results = [content["results"] for content in contents]
        cells = [common.spread([worse(r, key) for r in results], 100) for key in ("exact", "color")]
        lines.append([name, *cells, passing(results), minutes(contents)])
    return common.markdown(lines)


def worse(results: dict, key: str, prefix: str = "") -> float | None:
    """A score in the direction that is worse; None where there is no such score."""
    values = [results.get(f"{prefix}{way}_{key}") for way in DIRECTIONS]
    return None if None in values else min(values)


def passing(results: list[dict]) -> str:
    return f"{sum(map(passes, results))} of {len(results)}"


def minutes(contents: list[dict]) -> str:
    return f"{statistics.median(content['seconds'] for content in contents) / 60:.1f}"


def to_99(contents: list[dict]) -> str:
    """Median updates until both colours were 99% right, and minutes, if every run got there."""
    reached = [content["results"].get("updates_to_99") for content in contents]
    if None in reached:
        return "–"
    rows = [next(row for row in c["history"] if row["step"] == n) for c, n in zip(contents, reached, strict=True)]
    minutes = statistics.median(row["seconds"] for row in rows) / 60
    return f"{statistics.median(reached):,.0f} ({minutes:.1f} min)"


def switches(contents: list[dict]) -> str:
    """How often a digit's main colour differs from that in the log's line before, in its second half; median."""
    counts = []
    for history in (content["history"] for content in contents):
        if "a_to_b_colors" not in history[-1]:
            return "–"
        lines = [[*row["a_to_b_colors"], *row["b_to_a_colors"]] for row in history[len(history) // 2 :]]
        counts.append(sum(a != b for pair in itertools.pairwise(lines) for a, b in zip(*pair, strict=True)))
    return f"{statistics.median(counts):,.0f}"


def main(*names: str) -> None:
    """Runs what is missing, or the rows named, and writes the tables."""
    rows = common.collect("translation", ROWS, names)
    common.write("translation.md", tables(rows), rows)
    main_rows = {name: rows[name] for name in SUMMARY if name in rows}
    common.write("translation_summary.md", summary(main_rows), main_rows)


if __name__ == "__main__":
    runs.command(main, rows=[common.slug(row) for row in ROWS])
