"""Writes a page on which anyone can draw a digit, turn its knobs and recolour it, and opens it in the browser.

    python vae_control.py        # first: trains the model whose knobs are on the page
    python -m page.explore       # trains nothing

The page, outputs/explore.html, is template.html with the weights of vae_control.py's model and of cyclegan_colors.py's
generators in it. It needs no Python, no server and no network: its own JavaScript computes what the networks compute.
Its weights are rounded to 12 bits, which changes no pixel of a picture by 0.01.
"""

import base64
import json
import webbrowser
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

import cyclegan_colors
import data
import metrics
import runs
import vae_control

N_TRAIN_IMAGES = 10_000  # their codes show where a hue is on the wheel
N_TEST_IMAGES = 200  # a visitor can take one of them at random
N_DOTS = 2000  # codes of test images on the wheel
N_HUES = 36  # entries of the wheel's table, evenly spaced from 0 degrees
BITS = 12  # of a weight: with 8 the page has 4 MB, not 5.8, but in 3% of the images a variable takes another category

TEMPLATE = Path(__file__).with_name("template.html")
PAGE = runs.ROOT / "outputs" / "explore.html"


def main() -> Path:
    """Writes the page and opens it; returns where it is."""
    text = json.dumps(page_content(), separators=(",", ":")).replace("</", "<\\/")
    page = TEMPLATE.read_text(encoding="utf-8").replace("{{PAGE}}", text)
    runs.write_text(PAGE, page)
    print(f"Wrote {PAGE} ({PAGE.stat().st_size / 1e6:.1f} MB).")
    if not webbrowser.open(PAGE.as_uri()):
        print("No browser was found here: open that file in one.")
    return PAGE


def page_content() -> dict:
    """All that the page needs besides its template. Exits with one sentence if a model is missing or does not fit."""
    content, translation = saved_run(vae_control), saved_run(cyclegan_colors)
    model = vae_control.load_model(vae_control.OUTPUT_DIR / "model.pt")
    if model.latent_dim < 2:
        raise SystemExit("The trained model has a LATENT_DIM of 1: there is no colour wheel to show.")
    generators = cyclegan_colors.load_model(cyclegan_colors.OUTPUT_DIR / "generators.pt")

    cpu = torch.device("cpu")
    train, test = data.colored_set(train=True, device=cpu)[:N_TRAIN_IMAGES], data.colored_set(train=False, device=cpu)
    codes = metrics.codes_of(model, test)
    z, train_z = codes[:, :2], metrics.codes_of(model, train)[:, :2]
    hues = torch.arange(N_HUES) * 360 / N_HUES
    digit_of_category, category_of_digit = categories_and_digits(model, codes, test, content["results"])
    return {
        "dataset": data.DATASET,
        "names": data.class_names(),
        "n_test": len(test.images),
        "latent_dim": model.latent_dim,
        "n_variables": model.n_variables,
        "n_categories": model.n_categories,
        "digit_of_category": digit_of_category,
        "category_of_digit": category_of_digit,
        "reach": round(1.05 * z.norm(dim=1).quantile(0.995).item(), 2),  # the radius of the wheel
        "wheel": short(metrics.hue_codes(train_z, train, hues), 4),
        "dots": short(torch.cat([z, test.hues.nan_to_num()[:, None]], 1)[:N_DOTS], 3),
        "test": {
            "hues": test.hues[:N_TEST_IMAGES].nan_to_num().round().int().tolist(),
            "images": pack(test.images[:N_TEST_IMAGES].numpy(), 8),
        },
        "domains": {
            key: [
                {"name": color, "rgb": rgb}
                for color, rgb in zip(colors, short(data.palette(name, colors), 4), strict=True)
            ]
            for key, name, colors in (("a", "DOMAIN_A", data.DOMAIN_A), ("b", "DOMAIN_B", data.DOMAIN_B))
        },
        "networks": {
            **vae_layers(model),
            **{name: generator_layers(*part) for name, part in zip(("a_to_b", "b_to_a"), generators, strict=True)},
        },
        "shares": {
            name: share
            for name, share in {**translation["results"], **content["results"]}.items()
            if name in ("digit_accuracy", "knob_both", "a_to_b_both", "b_to_a_both")
        },
        "origin": (
            f"Written by page/explore.py from the models of vae_control.py (seed {content['constants'].get('SEED')}) "
            f"and cyclegan_colors.py (seed {translation['constants'].get('SEED')}). The networks are in "
            f"this file: nothing is loaded from elsewhere, and no drawing leaves the browser."
        ),
    }


def saved_run(script: ModuleType) -> dict:
    """The content of a script's metrics.json. Exits with one sentence if the run did not use data.py as it is now."""
    path = script.OUTPUT_DIR / "metrics.json"
    content = runs.load_results(path)
    then = {name: value for name, value in content["constants"].items() if hasattr(data, name)}
    now = json.loads(json.dumps({name: getattr(data, name) for name in then}))  # lists for tuples, as in the file
    if name := runs.first_difference(then, now):
        raise SystemExit(f"{name} in data.py is not that of {path}: set it back, or run {script.__name__}.py again.")
    return content


def categories_and_digits(
    model: nn.Module, codes: Tensor, test: data.ColoredSet, results: dict
) -> tuple[list[int], list[int | None]]:
    """The digit that each category of the first variable is named after; for each digit, its category or None.

    Where several categories bear a digit's name, the one that holds most of the test images stands for it.
    """
    categories = codes[:, model.latents["v1"]].argmax(1)
    names = torch.tensor(results["category_digits"])
    accuracy = (names[categories] == test.digits).double().mean().item()
    if abs(accuracy - results["digit_accuracy"]) > 0.002:
        raise SystemExit(
            f"metrics.json and model.pt in {vae_control.OUTPUT_DIR} are not of the same run: run vae_control.py again."
        )
    held = categories.bincount(minlength=model.n_categories)
    largest = [torch.where(names == digit, held, -1) for digit in range(10)]
    return names.tolist(), [int(held.argmax()) if held.max() >= 0 else None for held in largest]


# ------------------------------------------------------------------------------------------- weights, packed


def vae_layers(model: nn.Module) -> dict[str, list[dict]]:
    """The layers of the VAE. Its pictures become pixel by pixel: R, G, B of a pixel side by side."""

    def by_pixel(columns: Tensor) -> Tensor:  # (n, 3 · 784) → (n, 784 · 3)
        return columns.unflatten(1, (3, -1)).transpose(1, 2).flatten(1)

    first, second = (layer for layer in model.encoder if isinstance(layer, nn.Linear))
    *hidden, last = (layer for layer in model.decoder if isinstance(layer, nn.Linear))
    heads = {"gaussian_head": model.gaussian_head, "categorical_head": model.categorical_head}
    return {
        "encoder": [
            pack_layer(by_pixel(first.weight), first.bias),
            pack_layer(second.weight, second.bias),
        ],
        **{name: [pack_layer(head.weight, head.bias)] for name, head in heads.items()},
        "decoder": [pack_layer(layer.weight, layer.bias) for layer in hidden]
        + [pack_layer(by_pixel(last.weight.T).T, by_pixel(last.bias[None])[0])],
    }


def generator_layers(generator: cyclegan_colors.Generator, clamp: nn.Module) -> list[dict]:
    """The convolutions of a generator. The first one has the range that its input is stretched to."""
    layers = [
        pack_layer(layer.weight.permute(0, 2, 3, 1).flatten(1), layer.bias, layer.kernel_size[0], layer.padding[0])
        for layer in generator
        if isinstance(layer, nn.Conv2d)
    ]
    layers[0]["input_range"] = generator.input_range.tolist()
    return layers


def pack_layer(weight: Tensor, bias: Tensor, kernel: int = 1, padding: int = 0) -> dict:
    """A layer; weight (outputs, inputs), where the inputs of a convolution are kernel × kernel × channels.

    Each weight is stored as the nearest multiple of its output's scale, plus 2^(BITS - 1), input by input.
    """
    half = 2 ** (BITS - 1)
    scale = weight.abs().amax(1).clamp(min=1e-12) / (half - 1)
    return {
        "outputs": weight.shape[0],
        "inputs": weight.shape[1],
        "kernel": kernel,
        "padding": padding,
        "bits": BITS,
        "scale": short(scale, 7),
        "bias": short(bias, 7),
        "weights": pack((weight / scale[:, None]).round().int().add(half).T.numpy(), BITS),
    }


def pack(numbers: np.ndarray, bits: int) -> str:
    """Whole numbers in [0, 2^bits) as `bits` bits each, highest bit first, in base64."""
    each_bit = (numbers.reshape(-1, 1) >> np.arange(bits)[::-1]) & 1
    return base64.b64encode(np.packbits(each_bit.astype(np.uint8))).decode()


def short(values: Tensor, digits: int) -> list:
    """Nested lists of floats, each rounded to so many significant digits."""
    return [short(value, digits) if value.dim() else float(f"{value:.{digits}g}") for value in values]


if __name__ == "__main__":
    runs.command(main)
