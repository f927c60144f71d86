"""The four VAEs side by side: the same test images, the same requests, the same scores.

    python -m experiments.vaes             # runs what is missing, or the rows named

Each VAE script is run for each seed, and for the first seed with each of the edits below. The
tables go to outputs/tables/. If the first seed's weights are there, docs/img/comparison.png and
swaps.png are drawn.
"""

import functools
import statistics

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

INFORMATION = {  # heading → (key in what information() returns, factor, decimals)
    "digit, best latent": ("digit_best", 1, 2),
    "digit, second": ("digit_second", 1, 2),
    "hue, best latent": ("hue_best", 1, 2),
    "hue, second": ("hue_second", 1, 2),
    "MIG": ("mig", 1, 2),
}
SUMMARY = ("test loss", "digit kept, %", "on demand, both %", "by swap, both %")  # the README's
PICTURES = runs.ROOT / "docs" / "img"  # comparison.png and swaps.png


def tables(rows: dict[str, list[dict]]) -> dict[str, tuple[str, dict]]:
    """File name → (Markdown, its rows): all columns, the knobs, README's, and edited constants."""
    models, edited = {name: rows[name] for name in SCRIPTS if name in rows}, {}
    for row, (name, _) in EDITED.items():
        edited |= {f"{name}, default constants": rows.get(name), row: rows.get(row)}
    edited = {name: contents for name, contents in edited.items() if contents}
    summary = {name: common.COLUMNS[name] for name in SUMMARY}
    knobs = {name: rows[name] for name in ("k-means", "knobs", "encoder with labels") if name in rows}
    informed = {
        name: [{"results": information(content["results"])} for content in contents]
        for name, contents in models.items()
    }
    return {
        "vaes.md": (common.table(models, common.COLUMNS), models),
        "knobs.md": (common.table(knobs, common.KNOB_COLUMNS), knobs),
        "information.md": (common.table(informed, INFORMATION), models),
        "vaes_summary.md": (common.table(models, summary), models),
        "constants.md": (common.table(edited, common.COLUMNS), edited),
    }


def information(results: dict) -> dict[str, float]:
    """What the best latent and the second tell of the digit and of the hue, in nats, and the MIG.

    The mutual information gap (Chen et al. 2018) is the mean over digit and hue of the difference,
    divided by the factor's entropy on the test images. Two numbers that form the wheel of hues
    count as one latent, their angle.
    """
    latents = dict(results["latents"])
    if "angle_mi_hue" in results and results["color_latents"] == ["z1", "z2"]:
        del latents["z1"], latents["z2"]
        latents["angle"] = {"mi_digit": results["angle_mi_digit"], "mi_hue": results["angle_mi_hue"]}
    found, gaps = {}, []
    for factor, entropy in factor_entropies().items():
        best, second = sorted((latent[f"mi_{factor}"] for latent in latents.values()), reverse=True)[:2]
        found |= {f"{factor}_best": best, f"{factor}_second": second}
        gaps.append((best - second) / entropy)
    return found | {"mig": sum(gaps) / 2}


@functools.cache
def factor_entropies() -> dict[str, float]:
    """Of the test images' digits and hues, in nats."""
    test = data.colored_set(train=False, device=torch.device("cpu"))
    hue_bins = (test.hues.nan_to_num() * metrics.N_HUE_BINS / 360).long()
    return {name: metrics.mutual_information(part, part) for name, part in (("digit", test.digits), ("hue", hue_bins))}


def draw_comparison(rows: dict[str, list[dict]]) -> None:
    """Of each model the same reconstructions, requests and swaps: images picked by their order."""
    weights = {name: script.OUTPUT_DIR / "model.pt" for name, script in SCRIPTS.items()}
    if missing := [path for path in weights.values() if not path.exists()]:
        print(f"{PICTURES} is left as it is: there are no weights at {missing[0]} (they come with a run).")
        return
    cpu, pictures, swaps = torch.device("cpu"), {}, {}
    train, test = data.colored_set(train=True, device=cpu), data.colored_set(train=False, device=cpu)
    originals = test.colored(metrics.first_of_each_digit(test.digits, 1)[:, 0])
    requests = [(float(digit), 36.0 * digit) for digit in range(10)]  # (digit, degrees)
    with torch.inference_mode():
        for name, path in weights.items():
            model, results = SCRIPTS[name].load_model(path), [content["results"] for content in rows[name]]
            pictures[name] = examples(model, originals, train, torch.tensor(requests))
            first, second, *grids = metrics.swap_examples(
                model, metrics.codes_of(model, test), results[0]["color_latents"], test
            )
            diagonal = (torch.arange(10) + 2) % 8, torch.arange(10)  # no image is its own partner
            label = f"{name}: {100 * statistics.mean(r['swap_both'] for r in results):.0f}% right"
            swaps[label] = [grid[diagonal] for grid in grids]
    plots.comparison(PICTURES / "comparison.png", originals, pictures, requests)
    plots.swaps(PICTURES / "swaps.png", first, second[diagonal[0]], swaps)


def examples(
    model: torch.nn.Module, originals: Tensor, train: data.ColoredSet, requests: Tensor
) -> tuple[Tensor, Tensor]:
    """A model's reconstructions of originals (10, 3, 28, 28), and pictures of requests (10, 2)."""
    codes = metrics.find_codes(metrics.codes_of(model, train), train, requests)[:, 0]
    return model.decode(model.code(originals)), model.decode(codes)


def main(*names: str) -> None:
    """Runs what is missing, or the rows named, and writes the tables and the figure."""
    rows = common.collect("vaes", ROWS, names)
    for file, (text, of_table) in tables(rows).items():
        common.write(file, text, of_table)
    draw_comparison(rows)


if __name__ == "__main__":
    runs.command(main, rows=[common.slug(row) for row in ROWS])
