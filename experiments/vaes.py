"""The four VAEs side by side: the same test images, the same requests, the same scores.

    python compare.py

runs each VAE script for each seed, and the edits of its constants listed below. Results that exist with the same
constants are read (delete them after a change of the code). Then it prints the tables, saves them as Markdown in
outputs/compare/, and draws comparison.png.
"""

import json
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

sys.path.insert(0, str(Path(globals().get("__file__", "")).parent))  # also where Python leaves this folder out

import data
import metrics
import plots
import runs
import vae_continuous
import vae_control
import vae_discrete
import vae_joint

SEEDS = (0, 1, 2, 3, 4)

# Constants worth trying, with the first of the seeds: (model, edits).
EDITS = (
    ("continuous", {"LATENT_DIM": 8}),
    ("discrete", {"N_VARIABLES": 30, "N_CATEGORIES": 10}),
    ("joint", {"EMA_DECAY": 0.0}),
    ("joint", {"EPOCHS": 10}),
    ("joint", {"N_VARIABLES": 30, "N_CATEGORIES": 10}),
    ("joint", {"N_VARIABLES": 30, "N_CATEGORIES": 10, "BETA": 0.5}),
)

OUTPUT_DIR = runs.ROOT / "outputs" / "compare"
SCRIPTS = {"continuous": vae_continuous, "discrete": vae_discrete, "joint": vae_joint, "control": vae_control}
COLUMNS = {  # heading → (key in the results, factor)
    "test loss": ("test_loss", 1),
    "above the floor": ("test_above_floor", 1),
    "test loss, one-hot": ("test_loss_hard", 1),
    "digit kept, %": ("reconstruction_digit", 100),
    "hue kept, %": ("reconstruction_hue", 100),
    "on demand, both %": ("demand_both", 100),
    "by swap, both %": ("swap_both", 100),
}
KNOB_COLUMNS = {  # for the models that have them
    "by knob, both %": ("knob_both", 100),
    "first variable is the digit, %": ("digit_accuracy", 100),
}
SUMMARY = ("test loss", "digit kept, %", "on demand, both %", "by swap, both %", "by knob, both %")  # the README's


def folder_of(script: ModuleType, seed: int, edits: dict) -> Path:
    """Where a run is kept: the script's own folder for its default settings, else a folder below outputs/compare/."""
    if not edits and seed == script.SEED:
        return script.OUTPUT_DIR
    parts = [f"{name}={value}" for name, value in {**edits, "SEED": seed}.items()]
    return OUTPUT_DIR / "_".join([script.__name__, *parts])


def run(
    script: ModuleType,
    folder: Path,
    edits: dict,
    data_constants: tuple[str, ...] = data.RANDOM_COLORS,
    names: Iterable[str] = (),
) -> dict:
    """The content of metrics.json in a folder, if it was made with these constants; else that of a run into it.

    `edits`: constants of the script, or of data.py, with their values. The others stay as in the files.
    `data_constants`: the names of those of data.py that decide what the script sees. `names`: what the results must
    have.
    """
    homes = {name: script if hasattr(script, name) else data for name in edits} | {"OUTPUT_DIR": script}
    before = {name: getattr(home, name) for name, home in homes.items()}
    try:
        for name, value in ({"OUTPUT_DIR": folder} | edits).items():
            setattr(homes[name], name, value)
        path = folder / "metrics.json"
        wanted = json.loads(json.dumps(runs.constants(vars(script), data_constants)))
        if not path.exists() or runs.first_difference(runs.load_results(path)["constants"], wanted):
            print(f"\nRunning {folder.name}.\n")
            script.main()
            if folder != before["OUTPUT_DIR"]:  # the state that a longer run would need: 43 MB for each of many runs
                (folder / "finished.pt").unlink(missing_ok=True)
        return runs.load_results(path, names)
    finally:
        for name, value in before.items():
            setattr(homes[name], name, value)


def run_seed(script: ModuleType, seed: int, edits: dict) -> dict:
    names = [key for key, _ in COLUMNS.values()]
    return run(script, folder_of(script, seed, edits), {"SEED": seed, **edits}, names=names)


def table(rows: dict[str, list[dict]], columns: dict[str, tuple[str, float]] = COLUMNS, seeds: bool = True) -> str:
    """Markdown: a row for each entry, the mean ± the standard deviation of its runs in each column.

    A dash stands where a model has no such score. `seeds`: a last column has the number of runs.
    """
    lines = [["", *columns, *["seeds"] * seeds]]
    for name, contents in rows.items():
        values = [[content["results"].get(key) for content in contents] for key, _ in columns.values()]
        factors = [factor for _, factor in columns.values()]
        cells = [
            "–" if None in runs_of else spread([factor * value for value in runs_of])
            for runs_of, factor in zip(values, factors, strict=True)
        ]
        lines.append([name, *cells, *[str(len(contents))] * seeds])
    lines.insert(1, ["---", *["---:"] * (len(lines[0]) - 1)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def spread(values: list[float]) -> str:
    """Mean ± sample standard deviation, or the single value."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def examples(model: torch.nn.Module, train: data.ColoredSet, test: data.ColoredSet) -> tuple[Tensor, Tensor]:
    """A model's pictures of the first test image of each digit, and of ten requests: each (10, 3, 28, 28)."""
    index = metrics.first_of_each_digit(test.digits, 1)[:, 0]
    codes = metrics.find_codes(metrics.codes_of(model, train), train, torch.tensor(shown_requests()))[:, 0]
    return model.decode(model.code(test.colored(index))), model.decode(codes)


def shown_requests() -> list[tuple[float, float]]:
    """Each digit once, the hues evenly around the wheel: (digit, degrees)."""
    return [(float(digit), 36.0 * digit) for digit in range(10)]


def tables(models: dict[str, list[dict]]) -> dict[str, str]:
    """File name → Markdown, from the runs of each model: all columns, those of the README, and the rows of EDITS."""
    columns, edited = COLUMNS | KNOB_COLUMNS, {}
    for name, edits in EDITS:
        edited.setdefault(f"{name}, default constants", models[name])
        row = ", ".join([name, *(f"`{constant} = {value}`" for constant, value in edits.items())])
        edited[row] = [run_seed(SCRIPTS[name], SEEDS[0], edits)]
    summary = table(models, {name: columns[name] for name in SUMMARY}, seeds=False)
    return {"table.md": table(models, columns), "summary.md": summary, "constants.md": table(edited)}


def main() -> dict[str, list[dict]]:
    """Runs or reads everything, writes the tables and the figure; returns the contents by row of the first table."""
    for script in SCRIPTS.values():
        runs.check_folder(script.OUTPUT_DIR)
    runs.check_folder(OUTPUT_DIR)
    if not (isinstance(SEEDS, tuple) and SEEDS and all(type(seed) is int and seed >= 0 for seed in SEEDS)):
        raise SystemExit(f"SEEDS is {SEEDS!r}: it must be a tuple of whole numbers, such as (0, 1, 2).")
    for name, edits in EDITS:
        if name not in SCRIPTS or not all(hasattr(SCRIPTS[name], constant) for constant in edits):
            raise SystemExit(f"EDITS names {name!r} with {', '.join(edits)}: it must be a model and constants of it.")
    models = {name: [run_seed(script, seed, {}) for seed in SEEDS] for name, script in SCRIPTS.items()}
    for file, text in tables(models).items():
        with runs.atomic_write(OUTPUT_DIR / file) as temporary:
            temporary.write_text(text, encoding="utf-8")
        print(f"\n{text}")

    weights = {name: folder_of(script, SEEDS[0], {}) / "model.pt" for name, script in SCRIPTS.items()}
    missing = [path for path in weights.values() if not path.exists()]
    if missing:
        print(f"comparison.png is left as it is: there are no weights at {missing[0]} (they come with a run).")
        return models
    cpu = torch.device("cpu")
    train, test = data.colored_set(train=True, device=cpu), data.colored_set(train=False, device=cpu)
    index = metrics.first_of_each_digit(test.digits, 1)[:, 0]
    with torch.inference_mode():
        pictures = {name: examples(SCRIPTS[name].load_model(path), train, test) for name, path in weights.items()}
    originals = test.colored(index)
    plots.comparison(OUTPUT_DIR / "comparison.png", originals, pictures, shown_requests())
    return models


if __name__ == "__main__":
    runs.command(main)
