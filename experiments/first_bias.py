"""Does every seed train? The first epochs of the VAEs from ten seeds, with two kinds of first biases in the last layer:
the scripts' own (pictures start at the mean grey level of the training images), and those that torch gives (grey).
The last weights are scored: the average of the weights would lag behind by a tenth of the steps.

    python -m benchmarks.starts

The table goes to outputs/compare/starts.md.
"""

import contextlib
import tempfile
from pathlib import Path
from types import ModuleType
from unittest import mock

from torch import nn

import compare
import runs
import vae_continuous
import vae_discrete
import vae_joint

SEEDS = tuple(range(20, 30))  # no constant was chosen by them
EPOCHS = 3
MODELS = {"continuous": vae_continuous, "discrete": vae_discrete, "joint": vae_joint}
STARTS = ("torch's own biases", "the mean grey level")


class Trained(Exception):
    """Ends a run before its scores and figures."""


def first_epochs(script: ModuleType, start: str, seed: int) -> dict:
    """The last row of the history of a run of EPOCHS epochs."""
    histories = []

    def keep(run: runs.Run, history: list[dict]) -> None:
        histories.append(history)
        if len(history) == EPOCHS:
            raise Trained

    with tempfile.TemporaryDirectory() as folder:
        constants = {"SEED": seed, "EPOCHS": EPOCHS, "EMA_DECAY": 0.0}
        patches = [mock.patch.multiple(script, OUTPUT_DIR=Path(folder), **constants)]
        patches.append(mock.patch.object(runs.Run, "checkpoint", keep))
        if start == STARTS[0]:
            patches.append(mock.patch.object(nn.init, "constant_", lambda tensor, value: tensor))
        with contextlib.ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch)
            try:
                script.main()
            except Trained:
                return histories[-1][-1]


def table(rows: dict[tuple[str, str], list[dict]]) -> str:
    """Markdown: for each (model, start) the lowest and highest test loss, and how many seeds learned nothing."""
    lines = [["", "pictures start at", "lowest test loss", "highest", "seeds in which nothing is learned"]]
    for (model, start), last in rows.items():
        losses = [sum(value for name, value in row.items() if name.startswith("test_")) for row in last]
        stuck = sum(row["explained_variance"] < runs.NOTHING_EXPLAINED for row in last)
        lines.append([model, start, f"{min(losses):.1f}", f"{max(losses):.1f}", f"{stuck} of {len(last)}"])
    lines.insert(1, ["---", "---", "---:", "---:", "---:"])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Trains all, prints the table after each row, and saves it at the end."""
    rows = {}
    for name, script in MODELS.items():
        for start in STARTS:
            rows[name, start] = [first_epochs(script, start, seed) for seed in SEEDS]
            print(f"\n{table(rows)}", flush=True)
    with runs.atomic_write(compare.OUTPUT_DIR / "starts.md") as temporary:
        temporary.write_text(table(rows), encoding="utf-8")


if __name__ == "__main__":
    runs.command(main)
