"""Does every seed of vae_control.py find ten digits, and what is each ingredient worth? Short runs, in one table.

    python -m benchmarks.control

The first row has twenty seeds, the second the first two of them. The others leave one ingredient out, with these two.
Figures are not drawn. Each run leaves its metrics.json below outputs/compare/control/. A run that is there with the
same constants is read, not made again: delete it after a change of the code. The table goes to
outputs/compare/control.md.
"""

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor

import compare
import data
import runs
import vae_control

SEEDS = tuple(range(60, 80))  # nothing was chosen by them
SHORT = {"EPOCHS": 4}
STILL = {"MAX_SHIFT": 0.0, "MAX_ROTATION": 0.0, "MAX_SCALE": 0.0, "MAX_STRETCH": 0.0, "MAX_SHEAR": 0.0}
STILL |= {"ELASTIC": 0.0, "START_ELASTIC": 0.0}
ALL = "all ingredients"
ROWS = {  # name of the row → edits of the constants
    ALL: {},
    f"{ALL}, two seeds": {},
    "without the first term": {"DIGIT_WEIGHT": 0.0},
    "without the second term": {"KNOB_WEIGHT": 0.0},
    "copies not deformed": STILL,
    "copies in the same hue": {},
    "larger variable no larger": {"N_OVERCLUSTERS": 10},
    "one start": {"N_STARTS": 1},
    "without the votes": {"VOTE_ROUNDS": 0},
    "no training on consensus and votes": {"VOTE_EPOCHS": 0},
    "no fall of the rate": {"DECAY_FROM": 1.0},
}
COLUMNS = {name: compare.COLUMNS[name] for name in ("digit kept, %", "by swap, both %")}
COLUMNS |= compare.KNOB_COLUMNS | {"digits with a category": ("digits_found", 1)}


@contextlib.contextmanager
def same_hue() -> Iterator[None]:
    """In this context vae_control's copies keep the colour of the original."""
    deformed = vae_control.deformed_copies

    def in_the_same_hue(train: data.ColoredSet, index: Tensor, elastic: float) -> Tensor:
        rolled = data.ColoredSet(train.images[index], train.digits[index], train.colors[index].roll(-1, 0))
        return deformed(rolled, torch.arange(len(index), device=index.device), elastic)

    vae_control.deformed_copies = in_the_same_hue
    try:
        yield
    finally:
        vae_control.deformed_copies = deformed


def seeds_of(name: str) -> tuple[int, ...]:
    """The seeds of a row: all of them for the first, else two."""
    return SEEDS if name == ALL else SEEDS[:2]


def run(name: str, seed: int) -> dict:
    """The content of metrics.json of one run, read if it is there with these constants, else made; with a count."""
    row = ALL if name.startswith(ALL) else name  # the second row reads runs of the first
    folder = compare.OUTPUT_DIR / "control" / f"{row.replace(' ', '-')}_SEED={seed}"
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(vae_control, "figures", lambda *_: None))
        if name == "copies in the same hue":
            stack.enter_context(same_hue())
        content = compare.run(vae_control, folder, SHORT | ROWS[name] | {"SEED": seed})
    content["results"]["digits_found"] = len(set(content["results"]["category_digits"]))
    return content


def table() -> str:
    """Markdown. Runs or reads everything, and prints the table after each row."""
    rows = {}
    for name in ROWS:
        rows[name] = [run(name, seed) for seed in seeds_of(name)]
        print(f"\n{compare.table(rows, COLUMNS)}", flush=True)
    return compare.table(rows, COLUMNS)


def main() -> None:
    """Makes the table and saves it."""
    text = table()
    with runs.atomic_write(compare.OUTPUT_DIR / "control.md") as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    runs.command(main)
