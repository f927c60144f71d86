"""Does every seed of vae_knobs.py find ten digits, and what is each ingredient worth?

    python -m experiments.ingredients      # runs what is missing, or the rows named

One table of short runs. The first row has twenty seeds. The others leave one ingredient out, with
the first five of them. Figures are not drawn.
"""

import torch
from torch import Tensor

import data
import runs
import vae_knobs
from experiments import common

SEEDS = tuple(range(500, 520))  # nothing was chosen by them
N_WITHOUT = 5  # seeds of the other rows
SHORT = {"EPOCHS": 4, "figures": lambda *_: None}

known_copies = vae_knobs.known_copies


def in_the_same_hue(train: data.ColoredSet, index: Tensor, **options) -> tuple[Tensor, ...]:
    """vae_knobs's copies, but in the colours of their originals."""
    own = data.ColoredSet(train.images[index], train.digits[index], train.colors[index].roll(-1, 0))
    return known_copies(own, torch.arange(len(index), device=index.device), **options)


ALL = "all ingredients"
WITHOUT = {  # name of the row → edits
    "no contrastive warm-up": {"WARM_UP_EPOCHS": (0, 6)},
    "no clustering": {"CLUSTER_WEIGHT": 0.0},
    "no equivariance of codes": {"CODE_WEIGHT": 0.0},
    "no equivariance of pictures": {"PICTURE_WEIGHT": 0.0},
    "digit not heard": {"HEARD_WEIGHT": 0.0},
    "no centring": {"CENTRE_WEIGHT": 0.0},
    "known moves half as large": {"MAX_MOVE": 0.7},
    "copies in the same hue": {"known_copies": in_the_same_hue},
}
ROWS = {ALL: (vae_knobs, common.seeds(SHORT, *SEEDS))}
ROWS |= {row: (vae_knobs, common.seeds(SHORT | edits, *SEEDS[:N_WITHOUT])) for row, edits in WITHOUT.items()}
COLUMNS = {"digits named": ("digits_named", 1)} | common.KNOB_COLUMNS
COLUMNS.pop("drawings read, %")


def table(rows: dict[str, list[dict]]) -> str:
    """Markdown, with the lowest digit accuracy of each row."""
    for content in [content for contents in rows.values() for content in contents]:
        content["results"]["digits_named"] = len(set(content["results"]["category_digits"]))
    lowest = {name: min(c["results"]["digit_accuracy"] for c in contents) for name, contents in rows.items()}
    named = {
        f"{name}: {len(contents)} seeds, lowest accuracy {100 * lowest[name]:.1f}": contents
        for name, contents in rows.items()
    }
    return common.table(named, COLUMNS)


def main(*names: str) -> None:
    """Runs what is missing, or the rows named, and writes the table."""
    rows = common.collect("ingredients", ROWS, names)
    common.write("ingredients.md", table(rows), rows)


if __name__ == "__main__":
    runs.command(main, rows=[common.slug(row) for row in ROWS])
