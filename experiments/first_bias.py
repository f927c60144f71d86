"""Does every seed train? The first epochs of the VAEs, with two kinds of biases in the last layer.

Ten seeds each. The scripts' own biases start pictures at the mean grey level of the training
images; torch's start them grey. The last weights are scored: the average of the weights would lag
behind by a tenth of the steps.

    python -m experiments.first_bias       # runs what is missing, or the rows named

The table goes to outputs/tables/first_bias.md.
"""

from unittest import mock

from torch import nn

import metrics
import runs
import vae_continuous
import vae_discrete
import vae_joint
from experiments import common

SEEDS = tuple(range(20, 30))  # no constant was chosen by them
EDITS = {"EPOCHS": 3, "EMA_DECAY": 0.0, "figures": lambda *_: None}
MODELS = {"continuous": vae_continuous, "discrete": vae_discrete, "joint": vae_joint}
BIASES = ("torch's own biases", "the mean grey level")
ROWS = {f"{name}, {bias}": (MODELS[name], common.seeds(EDITS, *SEEDS)) for name in MODELS for bias in BIASES}


def table(rows: dict[str, list[dict]]) -> str:
    """Markdown: lowest and highest test loss of each row, and how many seeds learned nothing."""
    lines = [["pictures start at", "lowest test loss", "highest", "seeds in which nothing is learned"]]
    for name, contents in rows.items():
        last = [content["history"][-1] for content in contents]
        losses = [sum(value for name, value in row.items() if name.startswith("test_")) for row in last]
        stuck = sum(row["explained_variance"] < metrics.NOTHING_EXPLAINED for row in last)
        lines.append([name, f"{min(losses):.1f}", f"{max(losses):.1f}", f"{stuck} of {len(last)}"])
    return common.markdown(lines)


def main(*names: str) -> None:
    """Runs what is missing, or the rows named, and writes the table."""
    own = {row: runs_of for row, runs_of in ROWS.items() if BIASES[0] in row}
    with mock.patch.object(nn.init, "constant_", lambda bias, level: bias):
        rows = common.collect("first_bias", own, names)
    rows |= common.collect("first_bias", {row: runs_of for row, runs_of in ROWS.items() if row not in own}, names)
    rows = {row: rows[row] for row in ROWS if row in rows}
    common.write("first_bias.md", table(rows), rows)


if __name__ == "__main__":
    runs.command(main, rows=[common.slug(row) for row in ROWS])
