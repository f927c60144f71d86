"""Writes a page on which anyone can turn a model's knobs, draw a digit, write a number and recolour it, and opens it.

    python vae_knobs.py          # first, unless its weights are there: trains the model whose knobs are on the page
    python -m page.explore       # trains nothing

The page, outputs/explore.html, is template.html with arithmetic.js and the weights of vae_knobs.py's model and of
cyclegan_colors.py's generators in it. It needs no Python, no server and no network: its own JavaScript computes what
the networks compute. Its numbers, such as the share of drawings that it reads, are in outputs/page/metrics.json.
"""

import copy
import json
import re
import webbrowser
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cyclegan_colors
import data
import judge
import metrics
import runs
import vae_knobs

WEIGHTS = "model.pt"  # the file in vae_knobs.OUTPUT_DIR

N_TRAIN_IMAGES = 10_000  # their codes show which two numbers stand for a hue
N_CANDIDATES = 300  # test images; the page opens in the hand of one of them
N_TEST_IMAGES = 40  # of these, in whose hands all ten are whole: a visitor can take one; knobs are limited by them
N_HUES = 36  # entries of the hue's table, evenly spaced from 0 degrees
NUMBERS = (  # results that the page shows
    *("digit_accuracy", "knob_both", "knob_slant_error", "knob_width_error", "knob_weight_error", "n_test"),
    *("n_drawings", "drawings_read", "ones_read", "n_hands", "a_to_b_both", "b_to_a_both"),
)

# The state that the page opens in, and how far a knob goes: rows of ten digits in the hands of test images.
ROW_SPECKS = 0.01  # largest share of the ink outside the largest connected part, in the worst digit of a whole row
MEAN_SPECKS = 0.005  # the same on average where a knob may go
MIN_READ = 0.98  # share of the digits that the judge must read there
MIN_WHOLE = 0.9  # share of the digits that must have their parts and holes there
EULER_NUMBERS = ((0,), (1,), (0, 1), (1,), (0, 1), (1,), (0,), (1,), (-1,), (0,))  # by digit: parts minus holes
CUTS = (0.22, 0.3, 0.45)  # of the brightest ink, which the page shows from 0.22 on: a picture has them at each
UNITS = (2.0, 1.75, 1.5, 1.25, 1.0, 0.75)  # of a knob, the furthest first

# The weights' bits: the first layer's, then those of all others, but for the decoder's last, which gets the fewest that
# change no pixel by MAX_ERROR. A scale belongs to GROUP weights.
FIRST_BITS, BITS, LAST_BITS = 8, 10, (8, 9, 10, 11, 12)
GROUP = 16
MAX_ERROR = 0.01
N_CHECKED = 500  # test images, each as it is and with each knob moved both ways by its step
STEPS = {"slant": 20.0, "width": 25.0, "weight": 0.4}  # degrees, %, pixels

TEMPLATE, ARITHMETIC = (Path(__file__).with_name(name) for name in ("template.html", "arithmetic.js"))
PAGE = runs.ROOT / "outputs" / "explore.html"
RESULTS = runs.ROOT / "outputs" / "page" / "metrics.json"


def main() -> Path:
    """Writes the page and its numbers, and opens it; returns where it is.

    A line of its data is a checksum, a name and a layer of the network with this name, or what is not a network.
    """
    judge.load(torch.device("cpu"))  # trains it, if this is another dataset
    content, networks, results = page_content()
    parts = [("page", content), *((name, layer) for name, layers in networks.items() for layer in layers)]
    texts = [(name, json.dumps(part, separators=(",", ":")).replace("<", "\\u003c")) for name, part in parts]
    text = "\n".join(f"{zlib.adler32(part.encode())}\t{name}\t{part}" for name, part in texts)
    page, arithmetic = (path.read_text(encoding="utf-8").strip() for path in (TEMPLATE, ARITHMETIC))
    page = page.replace("{{ARITHMETIC}}", arithmetic).replace("{{SIZE}}", str(len(text))).replace("{{PAGE}}", text)
    runs.write_text(PAGE, page + "\n")
    results["megabytes"] = round(PAGE.stat().st_size / 1e6, 2)
    numbers = {"constants": runs.constants(globals(), ()), "results": results, "history": []}
    runs.write_text(RESULTS, json.dumps(numbers, indent=1) + "\n")
    opened = webbrowser.open(PAGE.as_uri())
    hint = "" if opened else "\nNo browser was found here: open that file in one."
    print(f"Wrote {PAGE} ({results['megabytes']} MB).{hint}")
    return PAGE


@torch.inference_mode()
def page_content() -> tuple[dict, dict[str, list[dict]], dict]:
    """What the page needs besides its template: all but the networks, the networks, and the page's own results."""
    content, translation = saved_run(vae_knobs), saved_run(cyclegan_colors)
    model = vae_knobs.load_model(vae_knobs.OUTPUT_DIR / WEIGHTS)
    generators = cyclegan_colors.load_model(cyclegan_colors.OUTPUT_DIR / "generators.pt")

    cpu = torch.device("cpu")
    train, test = data.colored_set(train=True, device=cpu)[:N_TRAIN_IMAGES], data.colored_set(train=False, device=cpu)
    codes, train_codes = metrics.codes_of(model, test), metrics.codes_of(model, train)
    hues = metrics.hue_codes(train_codes[:, model.latents["hue"]], train, torch.arange(N_HUES) * 360 / N_HUES)
    names, category_of_digit = categories_and_digits(model, codes, test, content["results"])
    digits = {category: names[category] for category in category_of_digit if category is not None}
    shown, limits, results = hands_and_limits(model, codes[:N_CANDIDATES], digits)
    networks, error, bits = vae_layers(model, codes[:N_CHECKED])
    for name, part in zip(("a_to_b", "b_to_a"), generators, strict=True):
        networks[name] = generator_layers(*part)
    results |= {"limits": limits, "pixel_error": error, "bits": bits}
    if data.DATASET == "MNIST":
        results |= drawings_read(model, torch.tensor(names))
    numbers = translation["results"] | content["results"] | results | {"n_test": len(test), "n_hands": len(shown)}
    page = {
        "dataset": data.DATASET,
        "names": data.class_names(),
        "n_variables": model.n_variables,
        "n_categories": model.n_categories,
        "units": short(model.units, 6),
        "limits": limits,
        "digit_of_category": names,
        "category_of_digit": category_of_digit,
        "wheel": short(hues, 4),
        "test": {
            "hues": test.hues[shown].nan_to_num().round().int().tolist(),
            "images": pack(test.images[shown].numpy(), 8),
        },
        "box": [data.BOX, data.RADIUS, 14.5],
        "domains": {"a": domain("DOMAIN_A", data.DOMAIN_A), "b": domain("DOMAIN_B", data.DOMAIN_B)},
        "numbers": {name: numbers[name] for name in NUMBERS if name in numbers},
        "origin": f"Written by page/explore.py from models of vae_knobs.py (seed {content['constants'].get('SEED')}) "
        f"and cyclegan_colors.py (seed {translation['constants'].get('SEED')}). All networks are in this file: it "
        f"loads nothing else, and no drawing leaves the browser.",
    }
    return page, networks, results


def domain(name: str, colors: tuple[str, ...]) -> list[dict]:
    """The colours of a domain by digit, each with its name."""
    return [
        {"name": re.sub("^(dark|deep|light|medium|pale)", r"\1 ", color), "rgb": rgb}
        for color, rgb in zip(colors, short(data.palette(name, colors), 4), strict=True)
    ]


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
    """The digit that each category of the digit variable is named after; for each digit, its category or None.

    Where several categories bear a digit's name, the one that holds most of the test images stands for it.
    """
    categories = codes[:, model.latents["digit"]].argmax(1)
    names = torch.tensor(results["category_digits"])
    accuracy = (names[categories] == test.digits).double().mean().item()
    if abs(accuracy - results["digit_accuracy"]) > 0.002:
        raise SystemExit(
            f"metrics.json and {WEIGHTS} in {vae_knobs.OUTPUT_DIR} are not of the same run: run vae_knobs.py again."
        )
    held = categories.bincount(minlength=model.n_categories)
    largest = [torch.where(names == digit, held, -1) for digit in range(10)]
    return names.tolist(), [int(held.argmax()) if held.max() >= 0 else None for held in largest]


# ----------------------------------------------------------------------------------- the first state, the knobs


def hands_and_limits(
    model: nn.Module, codes: Tensor, digits: dict[int, int]
) -> tuple[list[int], dict[str, list[float]], dict]:
    """Which of these codes' hands the page has, how far each knob goes, and the scores of this choice.

    The first whole rows of ten are taken, then others. The limits are found in their hands. The page opens in the
    sharpest whole row all of whose knobs are within them.
    """
    whole, sharpness = row_scores(model, codes, digits)
    hands = sorted(range(len(codes)), key=lambda i: not whole[i])[:N_TEST_IMAGES]
    limits = {knob: knob_limits(model, codes[hands], knob, digits) for knob in model.knobs}
    styles = torch.cat([codes[:, model.latents[knob]] for knob in model.knobs], 1)
    lowest, highest = torch.tensor([*limits.values()]).T
    within = ((styles >= lowest) & (styles <= highest)).all(1)
    start = int((sharpness + (whole & within)).argmax())
    scores = {"start_image": start, "start_sharpness": sharpness[start].item()}
    shown = [start, *(i for i in hands if i != start)][:N_TEST_IMAGES]
    return shown, limits, scores | {"whole_rows": whole.double().mean().item()}


def rows_of_ten(model: nn.Module, codes: Tensor, digits: dict[int, int]) -> tuple[Tensor, ...]:
    """All digits, by category, in the hands of these codes (n, D).

    Their ink (n, 10, 28, 28); read right by the judge; specks; with a digit's parts and holes, (n, 10).
    """
    rows = codes[:, None].repeat(1, len(digits), 1)
    rows[:, :, model.latents["digit"]] = F.one_hot(torch.tensor([*digits]), model.n_categories).to(codes)
    pictures = model.decode(rows.flatten(0, 1))
    right = metrics.digit_of(pictures) == torch.tensor([*digits.values()]).repeat(len(codes))
    specks, ink = metrics.specks_of(pictures).nan_to_num(1), pictures.amax(1)
    numbers = torch.stack([euler_numbers(ink, cut) for cut in CUTS]).unflatten(1, (len(codes), -1))
    whole = [torch.isin(numbers[:, :, i], torch.tensor(EULER_NUMBERS[d])).all(0) for i, d in enumerate(digits.values())]
    if data.DATASET != "MNIST":  # clothes have no such numbers
        whole = [torch.ones(len(codes), dtype=torch.bool)] * len(digits)
    return *(each.unflatten(0, (len(codes), -1)) for each in (ink, right, specks)), torch.stack(whole, 1)


def euler_numbers(ink: Tensor, cut: float) -> Tensor:
    """Parts minus holes (B,) of ink (B, 28, 28) above a share of its brightest, with 112 × 112 pixels as on the page.

    That is corners - edges + faces of the squares above the cut.
    """
    for _ in range(2):
        ink = F.interpolate(ink[:, None], scale_factor=2, mode="bilinear")[:, 0]
    above = F.pad((ink > cut * ink.amax((1, 2), keepdim=True)).float(), (1, 1, 1, 1))
    corners, upright, level = (F.max_pool2d(above, size, 1).sum((1, 2)) for size in ((2, 2), (2, 1), (1, 2)))
    return (corners - upright - level + above.sum((1, 2))).int()


def row_scores(model: nn.Module, codes: Tensor, digits: dict[int, int]) -> tuple[Tensor, Tensor]:
    """Of the rows of ten in the hands of codes (n, D): which are whole, and how sharp is each one's worst digit, (n,).

    Whole: the judge reads all ten right, they have a digit's parts and holes, and no specks. Sharp: Σ |∇g|² / Σ |∇g|
    with the ink g, grey levels for each pixel.
    """
    ink, right, specks, whole = rows_of_ten(model, codes, digits)
    g = F.pad(ink, (1, 1, 1, 1))
    squares = (g[..., :-1, 1:] - g[..., :-1, :-1]).square() + (g[..., 1:, :-1] - g[..., :-1, :-1]).square()
    sharp = (squares.sum((2, 3)) / squares.sqrt().sum((2, 3)).clamp(min=1e-9)).amin(1)
    return (right & whole).all(1) & (specks.amax(1) < ROW_SPECKS), sharp


def knob_limits(model: nn.Module, codes: Tensor, knob: str, digits: dict[int, int]) -> list[float]:
    """How many units a knob may go down and up, so that digits in the hands of these codes (n, D) stay whole."""
    ends = []
    for sign in (-1, 1):
        for units in UNITS:
            moved = codes.clone()
            moved[:, model.latents[knob]] = sign * units
            _, right, specks, whole = rows_of_ten(model, moved, digits)
            shares = right.double().mean(), whole.double().mean(), specks.mean()
            if shares[0] >= MIN_READ and shares[1] >= MIN_WHOLE and shares[2] <= MEAN_SPECKS:
                break
        ends.append(sign * units)
    return ends


def drawings_read(model: nn.Module, names: Tensor) -> dict:
    """The share of the drawings, each in a colour of its own, that are read right: of all, and of each hand's."""
    (images, digits), hands = data.drawings(), [drawing["hand"] for drawing in data.strokes()]
    codes = model.code(data.colorize(images, data.random_colors(len(images), data.TEST_COLOR_SEED)))
    right = (names[codes[:, model.latents["digit"]].argmax(1)] == digits).double()
    of_hand = {hand: right[[h == hand for h in hands]].mean().item() for hand in dict.fromkeys(hands)}
    read = {"drawings_read": right.mean().item(), "ones_read": right[digits == 1].mean().item()}
    return {"n_drawings": len(images), **read, "drawings_read_of_hand": of_hand}


# ------------------------------------------------------------------------------------------- weights, packed


def vae_layers(model: nn.Module, codes: Tensor) -> tuple[dict[str, list[dict]], float, int]:
    """The layers of the VAE, the largest change of a pixel decoded from codes (n, D), and the last layer's bits.

    Its pictures become pixel by pixel: R, G, B of a pixel side by side.
    """

    def by_pixel(columns: Tensor) -> Tensor:  # (n, 3 · 784) → (n, 784 · 3)
        return columns.unflatten(1, (3, -1)).transpose(1, 2).flatten(1)

    first, second = (layer for layer in model.encoder if isinstance(layer, nn.Linear))
    heads = {"gaussian_head": model.gaussian_head, "categorical_head": model.categorical_head}
    rounded = copy.deepcopy(model.decoder)
    *hidden, last = (layer for layer in rounded if isinstance(layer, nn.Linear))
    for layer in hidden:
        layer.weight.copy_(quantized(layer.weight, BITS)[0])
    turned = [model.turned(codes, knob, move) for knob, step in STEPS.items() for move in (-step, step)]
    turned, weight = torch.cat([codes, *turned]), last.weight.clone()
    for bits in LAST_BITS:
        last.weight.copy_(quantized(weight, bits)[0])
        error = (rounded(turned).sigmoid() - model.decode(turned)).abs().max().item()
        if error <= MAX_ERROR:
            break
    networks = {name: [pack_layer(head.weight, head.bias)] for name, head in heads.items()}
    networks["encoder"] = [
        pack_layer(by_pixel(first.weight), first.bias, FIRST_BITS),
        pack_layer(second.weight, second.bias),
    ]
    networks["decoder"] = [pack_layer(layer.weight, layer.bias) for layer in hidden]
    networks["decoder"].append(pack_layer(by_pixel(weight.T).T, by_pixel(last.bias[None])[0], bits))
    return networks, error, bits


def generator_layers(generator: cyclegan_colors.Generator, clamp: nn.Module) -> list[dict]:
    """The convolutions of a generator."""
    return [
        pack_layer(layer.weight.permute(0, 2, 3, 1).flatten(1), layer.bias, 12, layer.kernel_size[0], layer.padding[0])
        for layer in generator
        if isinstance(layer, nn.Conv2d)
    ]


def quantized(weight: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (outputs, inputs) as multiples of scales, one for each output and GROUP of inputs.

    The rounded weights; the multiples, int (outputs, inputs), from -(half - 1) to half - 1, where half is 2^(bits - 1);
    and the scales (groups, outputs) as -16 times their binary logarithm, int from 0 to 255.
    """
    groups = F.pad(weight, (0, -weight.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    largest = groups.abs().amax(2, keepdim=True).clamp(min=1e-12) / (2 ** (bits - 1) - 1)
    scale = (-16 * largest.log2()).floor().clamp(0, 255)
    multiples = (groups / (-scale / 16).exp2()).round().int()
    rounded = multiples * (-scale / 16).exp2()
    n = weight.shape[1]
    return rounded.flatten(1)[:, :n], multiples.flatten(1)[:, :n], scale[:, :, 0].T.int()


def pack_layer(weight: Tensor, bias: Tensor, bits: int = BITS, kernel: int = 1, padding: int = 0) -> dict:
    """A layer; weight (outputs, inputs), where the inputs of a convolution are kernel × kernel × channels.

    Each weight is stored as its multiple of a scale, plus 2^(bits - 1), input by input.
    """
    _, multiples, scales = quantized(weight, bits)
    return {
        "outputs": weight.shape[0],
        "inputs": weight.shape[1],
        "kernel": kernel,
        "padding": padding,
        "bits": bits,
        "group": GROUP,
        "scales": pack(scales.numpy(), 8),
        "bias": short(bias, 6),
        "weights": pack(multiples.add(2 ** (bits - 1)).T.numpy(), bits),
    }


def pack(numbers: np.ndarray, bits: int) -> str:
    """Whole numbers in [0, 2^bits) as `bits` bits each, highest bit first; two characters hold 13 bits (91² > 2^13).

    Characters are those from "#" on, with "!" for "<" and "~" for a backslash: base64 would be 8% longer.
    """
    each_bit = ((numbers.reshape(-1, 1) >> np.arange(bits)[::-1]) & 1).astype(np.uint8).reshape(-1)
    each_bit = np.pad(each_bit, (0, -len(each_bit) % 13)).reshape(-1, 13)
    pairs = np.stack(divmod(each_bit @ (1 << np.arange(13)[::-1]), 91), 1) + ord("#")
    return pairs.astype(np.uint8).tobytes().decode().translate({ord("<"): "!", ord("\\"): "~"})


def short(values: Tensor, digits: int) -> list:
    """Nested lists of floats, each rounded to so many significant digits."""
    return [short(value, digits) if value.dim() else float(f"{value:.{digits}g}") for value in values]


if __name__ == "__main__":
    runs.command(main)
