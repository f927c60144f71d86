"""The four VAEs side by side: the same test images, the same requests, the same scores.

    python -m experiments.vaes             # runs what is missing, or only the rows named

Each VAE script is run for each seed, and for the first seed with each of the edits below. The
tables go to outputs/tables/, and docs/img/comparison.png is drawn if the weights of the first seed
are there.
"""

import torch
from torch import Tensor

import data
import metrics
import plots
import runs
import vae_continuous
import vae_discrete
import vae_joint
import vae_knobs
from experiments import common, ends

SEEDS = (0, 1, 2, 3, 4)
SCRIPTS = {"continuous": vae_continuous, "discrete": vae_discrete, "joint": vae_joint, "knobs": vae_knobs}
EDITS = (  # constants worth trying
    ("continuous", {"LATENT_DIM": 8}),
    ("discrete", {"N_VARIABLES": 30, "N_CATEGORIES": 10}),
    ("joint", {"EMA_DECAY": 0.0}),
    ("joint", {"EPOCHS": 10}),
    ("joint", {"N_VARIABLES": 30, "N_CATEGORIES": 10}),
    ("joint", {"N_VARIABLES": 30, "N_CATEGORIES": 10, "BETA": 0.5}),
)
EDITED = {", ".join([name, *(f"`{k} = {v}`" for k, v in edits.items())]): (name, edits) for name, edits in EDITS}
ROWS = {name: (script, common.seeds({}, *SEEDS)) for name, script in SCRIPTS.items()}
ROWS |= {row: (SCRIPTS[name], common.seeds(edits, SEEDS[0])) for row, (name, edits) in EDITED.items()}
ENDS = {"k-means": {"METHOD": "k-means"}, "encoder with labels": {"METHOD": "labels"}}
ROWS |= {row: (ends, {0: edits}) for row, edits in ENDS.items()}

SUMMARY = ("test loss", "digit kept, %", "on demand, both %", "by swap, both %")  # the README's
PICTURE = runs.ROOT / "docs" / "img" / "comparison.png"


def tables(rows: dict[str, list[dict]]) -> dict[str, tuple[str, dict]]:
    """File name → (Markdown, its rows): all columns, the knobs, README's, and edited constants."""
    models, edited = {name: rows[name] for name in SCRIPTS if name in rows}, {}
    for row, (name, _) in EDITED.items():
        edited |= {f"{name}, default constants": rows.get(name), row: rows.get(row)}
    edited = {name: contents for name, contents in edited.items() if contents}
    summary = {name: common.COLUMNS[name] for name in SUMMARY}
    knobs = {name: rows[name] for name in ("k-means", "knobs", "encoder with labels") if name in rows}
    return {
        "vaes.md": (common.table(models, common.COLUMNS), models),
        "knobs.md": (common.table(knobs, common.KNOB_COLUMNS), knobs),
        "vaes_summary.md": (common.table(models, summary, seeds=False), models),
        "constants.md": (common.table(edited, common.COLUMNS), edited),
    }


def draw_comparison() -> None:
    """For each model the first test image of each digit, reconstructed, and ten requests."""
    weights = {name: script.OUTPUT_DIR / "model.pt" for name, script in SCRIPTS.items()}
    if missing := [path for path in weights.values() if not path.exists()]:
        print(f"{PICTURE.name} is left as it is: there are no weights at {missing[0]} (they come with a run).")
        return
    cpu, pictures = torch.device("cpu"), {}
    train, test = data.colored_set(train=True, device=cpu), data.colored_set(train=False, device=cpu)
    originals = test.colored(metrics.first_of_each_digit(test.digits, 1)[:, 0])
    requests = [(float(digit), 36.0 * digit) for digit in range(10)]  # (digit, degrees)
    with torch.inference_mode():
        for name, path in weights.items():
            pictures[name] = examples(SCRIPTS[name].load_model(path), originals, train, torch.tensor(requests))
    plots.comparison(PICTURE, originals, pictures, requests)


def examples(
    model: torch.nn.Module, originals: Tensor, train: data.ColoredSet, requests: Tensor
) -> tuple[Tensor, Tensor]:
    """A model's reconstructions of originals (10, 3, 28, 28), and pictures of requests (10, 2)."""
    codes = metrics.find_codes(metrics.codes_of(model, train), train, requests)[:, 0]
    return model.decode(model.code(originals)), model.decode(codes)


def main(*names: str) -> None:
    """Runs what is missing (of the rows named), and writes the tables and the figure."""
    for file, (text, rows) in tables(common.collect("vaes", ROWS, names)).items():
        common.write(file, text, rows)
    draw_comparison()


if __name__ == "__main__":
    runs.command(main, rows=[common.slug(row) for row in ROWS])
