"""The scripts on FashionMNIST, one run of each: the VAEs in one table, and the translation by class in three.

    python -m benchmarks.fashion

The four .gz files of FashionMNIST must lie in datasets/FashionMNIST/raw/ (torchvision downloads them if they do not).
Each run leaves its metrics.json below outputs/compare/. A run that is there with the same constants is read, not made
again: delete it after a change of the code. The tables go to outputs/compare/fashion.md.
"""

from unittest import mock

import compare
import cyclegan_colors
import data
import runs
from benchmarks import translation
from data import matplotlib  # imported there whatever MPLBACKEND says

DATASET = {"DATASET": "FashionMNIST"}
FAST = translation.FAST | {"CYCLE_WEIGHT": 2.0, "REFINE_WEIGHT": 40.0}  # a cycle loss that becomes heavy later
HUES = tuple(matplotlib.colors.to_hex(matplotlib.colors.hsv_to_rgb((i / 10, 1, 1))) for i in range(10))
TRANSLATIONS = {  # end of the folder's name → edits
    "": FAST,
    "_REFINE_WEIGHT=0": FAST | {"REFINE_WEIGHT": 0.0},
    "_ten-hues": FAST | {"DOMAIN_A": HUES, "DOMAIN_B": HUES[1:] + HUES[:1]},
}
COLUMNS = {
    heading.replace("digit", "class"): column for heading, column in (compare.COLUMNS | compare.KNOB_COLUMNS).items()
}


def vae(name: str) -> dict:
    """The content of metrics.json of a VAE's run: read if it is there with these constants, else made."""
    script = compare.SCRIPTS[name]
    return compare.run(script, compare.OUTPUT_DIR / f"{script.__name__}_FashionMNIST", DATASET)


def colors(name: str) -> dict:
    """The same for one of the TRANSLATIONS."""
    folder = compare.OUTPUT_DIR / f"cyclegan_colors_FashionMNIST{name}"
    return compare.run(cyclegan_colors, folder, DATASET | TRANSLATIONS[name], data.DOMAINS)


def by_class(results: dict) -> str:
    """Markdown: how often the colour is exact, or right, and the class is kept, for each class and for all images."""
    with mock.patch.object(data, "DATASET", DATASET["DATASET"]):
        names = data.class_names()
    head = [f"{word} {way}, %" for word in ("colour exact", "right", "class kept") for way in ("A → B", "B → A")]
    keys = [f"{way}_{score}" for score in ("exact", "color", "digit") for way in translation.DIRECTIONS]
    lines = [["class", *head, "class read in the true target, %"]]
    keys.append("oracle_a_to_b_digit")
    lines += [[name, *(f"{100 * results[f'{key}_by_digit'][i]:.1f}" for key in keys)] for i, name in enumerate(names)]
    lines.append(["all", *(f"{100 * results[key]:.1f}" for key in keys)])
    lines.insert(1, ["---", *["---:"] * len(keys)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def tables() -> str:
    """Markdown: the VAEs, then each of the TRANSLATIONS by class.

    Runs or reads everything, and prints each table or row as it comes.
    """
    translated = [by_class(colors(name)["results"]) for name in TRANSLATIONS]
    print("", *translated, sep="\n", flush=True)
    rows = {}
    for name in compare.SCRIPTS:
        rows[name] = [vae(name)]
        print(f"\n{compare.table(rows, COLUMNS, seeds=False)}", flush=True)
    return "\n".join([compare.table(rows, COLUMNS, seeds=False), *translated])


def main() -> None:
    """Makes the tables and saves them."""
    text = tables()
    with runs.atomic_write(compare.OUTPUT_DIR / "fashion.md") as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    runs.command(main)
