"""The scripts on FashionMNIST, one run each: tables of the VAEs and of the translation.

    python -m experiments.fashion          # runs what is missing, or the rows named

The four .gz files of FashionMNIST must lie in datasets/FashionMNIST/raw/ (torchvision downloads
them if they do not). The tables go to outputs/tables/fashion.md.
"""

import matplotlib.colors

import cyclegan_colors
import data
import runs
from experiments import common, translation, vaes

DATASET = {"DATASET": "FashionMNIST"}
HUES = tuple(matplotlib.colors.to_hex(matplotlib.colors.hsv_to_rgb((i / 10, 1, 1))) for i in range(10))
TRANSLATIONS = {  # name of the row → edits
    "translation": DATASET,
    "translation, ten hues": DATASET | {"DOMAIN_A": HUES, "DOMAIN_B": HUES[1:] + HUES[:1]},
}
ROWS = {name: (script, {0: DATASET}) for name, script in vaes.SCRIPTS.items()}
ROWS |= {row: (cyclegan_colors, {0: edits}) for row, edits in TRANSLATIONS.items()}
COLUMNS, KNOB_COLUMNS = (
    {heading.replace("digit", "class"): column for heading, column in columns.items() if "drawings" not in heading}
    for columns in (common.COLUMNS, common.KNOB_COLUMNS)
)
SCORES = ("exact", "color", "digit")


def by_class(results: dict) -> str:
    """Markdown by class: how often the colour is exact and right, and the class is kept."""

    def shares(key: str) -> list[float]:
        return [*results[f"{key}_by_digit"], results[key]]

    with common.edited(data, **DATASET):
        names = [*data.class_names(), "all"]
    exact, right, kept = ([shares(f"{way}_{key}") for way in translation.DIRECTIONS] for key in SCORES)
    worse = [[min(pair) for pair in zip(*ways, strict=True)] for ways in (right, kept)]
    columns = [*exact, *worse, shares("oracle_a_to_b_digit")]
    head = ["class", "colour exact A → B, %", "colour exact B → A, %", "right in the worse, %"]
    head += ["class kept in the worse, %", "class read in the true target, %"]
    return common.markdown([head, *([name, *(f"{100 * c[i]:.1f}" for c in columns)] for i, name in enumerate(names))])


def tables(rows: dict[str, list[dict]]) -> str:
    """Markdown: the VAEs, the knobs, then each of the TRANSLATIONS by class."""
    models = {name: rows[name] for name in vaes.SCRIPTS if name in rows}
    translated = [by_class(rows[name][0]["results"]) for name in TRANSLATIONS if name in rows]
    knobs = common.table({name: models[name] for name in ("knobs",) if name in models}, KNOB_COLUMNS)
    return "\n".join([common.table(models, COLUMNS), knobs, *translated])


def main(*names: str) -> None:
    """Runs what is missing, or the rows named, and writes the tables."""
    rows = common.collect("fashion", ROWS, names)
    common.write("fashion.md", tables(rows), rows)


if __name__ == "__main__":
    runs.command(main, rows=[common.slug(row) for row in ROWS])
