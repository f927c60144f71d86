"""What makes the colour translation converge: cyclegan_colors.py with other constants, seeds and colours, in one table.

    python -m benchmarks.translation

Each run leaves its metrics.json below outputs/compare/ (seed 0 of the default constants is the script's own run, in
outputs/cyclegan_colors/). A run that is there with the same constants is read, not made again: delete it after a change
of the code. The table goes to outputs/compare/translation.md, its main rows to translation_summary.md.
"""

import json
import statistics
import time

import torch
import torch.nn.functional as F

import compare
import cyclegan_colors
import data
import metrics
import runs
from data import matplotlib  # imported there whatever MPLBACKEND says

PLAIN = {"INPUT_RANGE": (0.0, 1.0), "REFINE_FROM": 0.3, "REFINE_WEIGHT": 0.0}  # pixels as they are, one cycle loss
FAST = PLAIN | {"EPOCHS": 8, "IMAGES_PER_EPOCH": 16_000, "BATCH_SIZE": 32, "LEARNING_RATE": 0.002}
FAST |= {"CYCLE_WEIGHT": 10.0}
USUAL = {"REFINE_FROM": 1.0, "BETA2": 0.999, "DECAY_FROM": 0.5}  # Adam with its usual beta2, and no change of beta1
LONGER = FAST | USUAL | {"EPOCHS": 16}
PAIRED = {"EPOCHS": 10, "IMAGES_PER_EPOCH": 12_800, "BATCH_SIZE": 32, "LEARNING_RATE": 0.002}  # on true pairs
# The homework's losses, first weights, betas and rate, and the last weights (its epochs are 150).
RECIPE = {"EPOCHS": 12, "HE_WEIGHTS": False, "R1_WEIGHT": 0.0, "BETA1": 0.9, "CYCLE_WEIGHT": 0.0, "EMA_DECAY": 0.0}
RECIPE |= PLAIN | USUAL | {"DECAY_FROM": 1.0}


def seeds(edits: dict, *values: int) -> dict[str, dict]:
    """The runs of a row that differ in their seed: part of the folder's name → edits of the constants."""
    return {f"SEED={seed}": edits | {"SEED": seed} for seed in values}


def complements() -> dict[str, tuple[str, ...]]:
    """In B each digit has the complement of its colour in A, 1 - RGB. White's would be black, and is grey."""
    b = 1 - data.palette("DOMAIN_A", data.DOMAIN_A)
    return {"DOMAIN_B": tuple("grey" if not color.any() else matplotlib.colors.to_hex(color.tolist()) for color in b)}


def drawn(seed: int) -> dict[str, tuple[str, ...]]:
    """Ten colours drawn at random, for A; in B a random derangement of them, so that each digit changes its colour.

    Uniform in RGB, none darker than 0.4 in its largest channel, no two nearer than 0.35: others are drawn anew.
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


ROWS = {  # name of the row → its runs
    "recipe of the homework": seeds(RECIPE, 0),
    "default constants": seeds({}, 0, 1, 2, 3, 4),
    "24 epochs": seeds({"EPOCHS": 24}, 0, 1, 2, 3, 4),
    "24 epochs, float32": seeds({"EPOCHS": 24, "PRECISION": "float32"}, 0),
    "24 epochs, narrower range": seeds({"EPOCHS": 24, "INPUT_RANGE": (-1.0, 3.0)}, 0),
    "pixels as they are": seeds(PLAIN | {"REFINE_WEIGHT": 40.0}, 0),
    "pixels as they are, `REFINE_WEIGHT = 0`": seeds(PLAIN | {"EPOCHS": 28}, 0),
    "fast": seeds(FAST, 0, 1, 2, 3, 4),
    "fast, `R1_WEIGHT = 0`": seeds(FAST | {"R1_WEIGHT": 0.0}, 0, 1, 2),
    "fast, `R1_WEIGHT = 0`, `REFINE_FROM = 1`": seeds(FAST | {"R1_WEIGHT": 0.0, "REFINE_FROM": 1.0}, 0, 1),
    "fast, complementary colours": seeds(FAST | complements(), 0),
    "fast, colours drawn at random": {f"colours={i}": FAST | drawn(i) for i in range(1, 11)},
    "longer, usual beta2": seeds(LONGER, 0, 1, 2, 3, 4),
    "trained on true pairs": {"paired": PAIRED},
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
PUBLISHED = {"color": (60, 38)}  # of the homework's published weights, after 150 full epochs; not run here


def passes(results: dict) -> bool:
    """In both directions: colour exact in 99.5%, digit kept within 0.5 points of the true targets', no digit under 98%
    in either, and a PSNR of 37 dB.
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
    """Markdown: mean ± standard deviation over a row's runs, the lowest digit of any, how many pass, and what it took.

    Updates to 99% (both colours right, on the log's 2,000 images) and minutes are medians. `summary`: fewer columns.
    """
    parts = {name: COLUMNS[name] for name in list(COLUMNS)[: 2 if summary else None]}
    units = {"psnr": "dB"}
    scores = [(key, direction, factor) for key, factor in parts.values() for direction in DIRECTIONS]
    lines = [
        [
            "",
            *(f"{name} {way}, {units.get(key, '%')}" for name, (key, _) in parts.items() for way in ("A → B", "B → A")),
        ]
    ]
    lines[0] += ["runs that pass", "minutes", *["lowest digit, %", "updates", "to 99%"] * (not summary)]
    first = next(iter(rows.values()))[0]["results"]
    for name, prefix in (("the image as it is", "identity_"), ("the true target", "oracle_"))[: 1 if summary else 2]:
        lines.append([name, *(cell([first[f"{prefix}{way}_{key}"]], factor) for key, way, factor in scores)])
    published = [str(PUBLISHED[key][way == "b_to_a"]) if key in PUBLISHED else "–" for key, way, _ in scores]
    lines.append(["the homework's published weights", *published])
    for name, contents in rows.items():
        results = [content["results"] for content in contents]
        cells = [cell([r[f"{way}_{key}"] for r in results], factor) for key, way, factor in scores]
        cells.append(f"{sum(map(passes, results))} of {len(results)}")
        cells.append(f"{statistics.median(content['seconds'] for content in contents) / 60:.1f}")
        cells.append(f"{100 * min(lowest(r, direction) for r in results for direction in DIRECTIONS):.1f}")
        cells.append(f"{contents[0]['history'][-1]['step']:,}")
        cells.append(to_99(contents))
        lines.append([name, *cells])
    lines = [line[: len(lines[0])] + ["–"] * (len(lines[0]) - len(line)) for line in lines]
    lines.insert(1, ["---", *["---:"] * (len(lines[0]) - 1)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cell(values: list[float | None], factor: float) -> str:
    """Mean ± standard deviation of the values times the factor; a dash where one is missing."""
    return "–" if None in values else compare.spread([factor * value for value in values])


def tables(rows: dict[str, list[dict]]) -> dict[str, str]:
    """File name → Markdown."""
    main_rows = {name: rows[name] for name in SUMMARY if name in rows}
    return {"translation.md": table(rows), "translation_summary.md": table(main_rows or rows, summary=True)}


def to_99(contents: list[dict]) -> str:
    """Updates until both colours were 99% right, and the minutes that took: medians, if every run got there."""
    reached = [content["results"].get("updates_to_99") for content in contents]
    if None in reached:
        return "–"
    rows = [next(row for row in c["history"] if row["step"] == n) for c, n in zip(contents, reached, strict=True)]
    minutes = statistics.median(row["seconds"] for row in rows) / 60
    return f"{statistics.median(reached):,.0f} ({minutes:.1f} min)"


def run(name: str, part: str, edits: dict) -> dict:
    """The content of metrics.json of one run: read if it is there with these constants, else made."""
    if part == "paired":
        return paired()
    short = name.replace("`", "").replace(" = ", "=").replace(", ", "_").replace(" ", "-")
    folder = compare.OUTPUT_DIR / f"cyclegan_colors_{short}_{part}"
    if edits == {"SEED": cyclegan_colors.SEED}:
        folder = cyclegan_colors.OUTPUT_DIR
    names = ["updates_to_99", *(f"{way}_{key}" for way in DIRECTIONS for key, _ in COLUMNS.values())]
    return compare.run(cyclegan_colors, folder, edits, data.DOMAINS, names)


def paired() -> dict:
    """The content of metrics.json of generators that were trained on true pairs: what the networks can be taught.

    Read if it is there, else made. The loss is the mean L1 distance to the true target.
    """
    path = compare.OUTPUT_DIR / "cyclegan_colors_paired-training" / "metrics.json"
    if path.exists() and runs.load_results(path)["constants"] == PAIRED:
        return runs.load_results(path)
    torch.manual_seed(0)
    start, device, directions = time.perf_counter(), torch.device("cpu"), {}
    images, digits = data.load(train=True)
    a, b = data.palette("DOMAIN_A", data.DOMAIN_A), data.palette("DOMAIN_B", data.DOMAIN_B)
    steps, size = PAIRED["EPOCHS"] * PAIRED["IMAGES_PER_EPOCH"] // PAIRED["BATCH_SIZE"], PAIRED["BATCH_SIZE"]
    for name, source, target in (("a_to_b", a, b), ("b_to_a", b, a)):
        generator = cyclegan_colors.Generator()
        optimizer = torch.optim.Adam(generator.parameters(), PAIRED["LEARNING_RATE"])
        for _ in range(steps):
            index = torch.randint(len(images), (size,))
            grey, digit = images[index], digits[index]
            outputs = generator(data.colorize(grey, source[digit]))
            loss = F.l1_loss(outputs, data.colorize(grey, target[digit]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        directions[name] = metrics.Direction(cyclegan_colors.clamped(generator), source, target)
    results, *_ = metrics.evaluate_translation(directions, *data.load(train=False))
    content = {
        "constants": PAIRED,
        "versions": runs.versions(device, {}),
        "seconds": round(time.perf_counter() - start, 1),
    }
    content |= {"results": results, "history": [{"step": steps}]}
    path.parent.mkdir(parents=True, exist_ok=True)
    with runs.atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return content


def main() -> None:
    """Runs or reads every row, prints the table after each row, and saves it at the end."""
    rows = {}
    for name, parts in ROWS.items():
        rows[name] = [run(name, part, edits) for part, edits in parts.items()]
        print(f"\n{table(rows)}", flush=True)
    for file, text in tables(rows).items():
        with runs.atomic_write(compare.OUTPUT_DIR / file) as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    runs.command(main)
