"""What each ingredient of vae_control.py is worth: short runs, each without one of them, in one table.

    python -m benchmarks.control

Each run leaves its metrics.json below outputs/compare/. A run that is there with the same constants is read, not made
again: delete it after a change of the code. The table goes to outputs/compare/control.md.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

import compare
import data
import runs
import vae_control

SEEDS = (0, 1)
SHORT = {"EPOCHS": 6}
STILL = {"MAX_SHIFT": 0.0, "MAX_ROTATION": 0.0, "MAX_SCALE": 0.0, "MAX_STRETCH": 0.0, "MAX_SHEAR": 0.0, "ELASTIC": 0.0}
ROWS = {  # name of the row → edits of the constants
    "short run": {},
    "without the first term": {"DIGIT_WEIGHT": 0.0},
    "without the second term": {"KNOB_WEIGHT": 0.0},
    "copies not deformed": STILL,
    "copies not distorted elastically": {"ELASTIC": 0.0},
    "copies in the same hue": {},
    "one start": {"N_STARTS": 1},
    "no fall of the rate": {"DECAY_FROM": 1.0},
}
COLUMNS = {name: compare.COLUMNS[name] for name in ("test loss", "digit kept, %", "by swap, both %")}
COLUMNS |= compare.KNOB_COLUMNS


@contextlib.contextmanager
def same_hue() -> Iterator[None]:
    """In this context vae_control's copies keep the colour of the original."""
    deformed = vae_control.deformed_copies

    def in_the_same_hue(train: data.ColoredSet, index: Tensor) -> Tensor:
        rolled = data.ColoredSet(train.images[index], train.digits[index], train.colors[index].roll(-1, 0))
        return deformed(rolled, torch.arange(len(index), device=index.device))

    vae_control.deformed_copies = in_the_same_hue
    try:
        yield
    finally:
        vae_control.deformed_copies = deformed


def run(name: str, edits: dict, seed: int) -> dict:
    """The content of metrics.json of one run: read if it is there with these constants, else made."""
    folder = compare.OUTPUT_DIR / f"vae_control_{name.replace(' ', '-')}_SEED={seed}"
    with same_hue() if name == "copies in the same hue" else contextlib.nullcontext():
        return compare.run(vae_control, folder, SHORT | edits | {"SEED": seed})


def main() -> None:
    """Runs or reads every row, prints the table after each row, and saves it at the end."""
    rows = {}
    for name, edits in ROWS.items():
        rows[name] = [run(name, edits, seed) for seed in SEEDS]
        print(f"\n{compare.table(rows, COLUMNS)}", flush=True)
    with runs.atomic_write(compare.OUTPUT_DIR / "control.md") as temporary:
        temporary.write_text(compare.table(rows, COLUMNS), encoding="utf-8")


if __name__ == "__main__":
    runs.command(main)
