"""The scripts on FashionMNIST, one run each: a table of the VAEs, three of the translation.

    python -m experiments.fashion          # runs what is missing, or only the rows named

The four .gz files of FashionMNIST must lie in datasets/FashionMNIST/raw/ (torchvision downloads
them if they do not). The tables go to outputs/tables/fashion.md.
"""

import matplotlib.colors

import cyclegan_colors
import data
import runs
from experiments import common, translation, vaes

DATASET = {"DATASET": "FashionMNIST"}
FAST = DATASET | translation.FAST | {"CYCLE_WEIGHT": 2.0, "REFINE_WEIGHT": 40.0}  # heavy later
HUES = tuple(matplotlib.colors.to_hex(matplotlib.colors.hsv_to_rgb((i / 10, 1, 1))) for i in range(10))
TRANSLATIONS = {  # name of the row → edits
    "translation": FAST,
    "translation, `REFINE_WEIGHT = 0`": FAST | {"REFINE_WEIGHT": 0.0},
    "translation, ten hues": FAST | {"DOMAIN_A": HUES, "DOMAIN_B": HUES[1:] + HUES[:1]},
}
ROWS = {name: (script, {0: DATASET}) for name, script in vaes.SCRIPTS.items()}
ROWS |= {row: (cyclegan_colors, {0: edits}) for row, edits in TRANSLATIONS.items()}
COLUMNS, KNOB_COLUMNS = (
    {heading.replace("digit", "class"): column for heading, column in columns.items() if "drawings" not in heading}
    for columns in (common.COLUMNS, common.KNOB_COLUMNS)
)


def by_class(results: dict) -> str:
    """Markdown by class: how often the colour is exact, or right, and the class is kept."""
    with common.edited(data, **DATASET):
        names = data.class_names()
    head = [f"{word} {way}, %" for word in ("colour exact", "right", "class kept") for way in ("A → B", "B → A")]
    keys = [f"{way}_{score}" for score in ("exact", "color", "digit") for way in translation.DIRECTIONS]
    keys.append("oracle_a_to_b_digit")
    lines = [["class", *head, "class read in the true target, %"]]
    lines += [[name, *(f"{100 * results[f'{key}_by_digit'][i]:.1f}" for key in keys)] for i, name in enumerate(names)]
    return common.markdown([*lines, ["all", *(f"{100 * results[key]:.1f}" for key in keys)]])


def tables(rows: dict[str, list[dict]]) -> str:
    """Markdown: the VAEs, the knobs, then each of the TRANSLATIONS by class."""
    models = {name: rows[name] for name in vaes.SCRIPTS if name in rows}
    translated = [by_class(rows[name][0]["results"]) for name in TRANSLATIONS if name in rows]
    knobs = common.table({name: models[name] for name in ("knobs",) if name in models}, KNOB_COLUMNS, seeds=False)
    return "\n".join([common.table(models, COLUMNS, seeds=False), knobs, *translated])


def main(*names: str) -> None:
    """Runs what is missing (of the rows named), and writes the tables."""
    rows = common.collect("fashion", ROWS, names)
    common.write("fashion.md", tables(rows), rows)


if __name__ == "__main__":
    runs.command(main, rows=[common.slug(row) for row in ROWS])
