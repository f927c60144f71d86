"""The scores: what survives in a picture, and what a latent code controls.

The scripts call this on what they learned. Labels only name and score: nothing here trains a VAE
or a generator. Scores are shares in [0, 1], hues are degrees, information is in nats.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import data
import judge

HUE_TOLERANCE = 15.0  # degrees: a hue is right when it is no further off
COLOR_TOLERANCE = 0.1  # RGB, Euclidean (black to white: 1.73): largest error of an exact colour
N_HUES = 24  # requested hues, evenly spaced from 0 degrees
CODES_PER_REQUEST = 5
N_SEARCHED = 10_000  # training images whose codes may be chosen for a request
N_NEIGHBORS = 50  # training codes that decide what a code stands for
BANDWIDTH = 0.1  # the width of the kernel that weighs them, in the units of the code
HUE_WIDTH = 10.0  # degrees: how fast a code gets less suitable as its hue is off
N_HUE_BINS = 12  # for mutual information with the hue
KNOB_STEPS = {"slant": 10.0, "width": 15.0, "weight": 0.5}  # degrees, %, pixels of a move
SPECK_LEVEL = 0.2  # share of a picture's brightest ink: connected pixels above it are a part
N_VALUE_BINS = 20  # equally filled bins of a continuous latent, for mutual information
NOTHING_EXPLAINED = 0.02  # share of the pixels' variance; a code that explains less is warned of


# -------------------------------------------------------------------------------- reading a picture


def _in_batches(function: Callable, x: Tensor, size: int = 500) -> Tensor:
    with torch.inference_mode():
        return torch.cat([function(batch) for batch in x.split(size)])


def digit_of(images: Tensor) -> Tensor:
    """Judged digit of images (B, 3, 28, 28) in [0, 1]: int64 (B,)."""
    model = judge.load(images.device)
    return _in_batches(lambda x: model(x).argmax(1), images, 50)  # fits a cache: faster than 500


def hue_of(images: Tensor) -> Tensor:
    """Hue in degrees, (B,), of the ink-weighted mean RGB of images (B, 3, 28, 28); NaN without ink.

    A pixel's ink is the maximum of its channels, so that the black background does not count.
    """
    ink = images.amax(1, keepdim=True)
    return data.rgb_to_hue((ink * images).sum((2, 3)) / ink.sum((2, 3)))


def hue_distance(a: Tensor, b: Tensor) -> Tensor:
    """Degrees between two hues, the shorter way round the wheel, in [0, 180]."""
    return ((a - b + 180) % 360 - 180).abs()


def _moments(images: Tensor) -> tuple[Tensor, ...]:
    """var(x), var(y), cov(x, y) of the ink about its centre, y downwards, pixels²: three (B,)."""
    ink = images.amax(1)
    axis, mass = torch.arange(28.0, device=ink.device), ink.sum((1, 2))
    x, y = (ink.sum(1) @ axis / mass)[:, None, None], (ink.sum(2) @ axis / mass)[:, None, None]
    dx, dy = axis - x, axis[:, None] - y
    return tuple((ink * square).sum((1, 2)) / mass for square in (dx * dx, dy * dy, dx * dy))


def slant_of(images: Tensor) -> Tensor:
    """Slant in degrees, (B,), of images (B, C, 28, 28): to the right is positive; NaN without ink.

    atan(-cov(x, y) / var(y)), from the second moments: the shear that would set the digit upright.
    """
    _, var_y, cov = _moments(images)
    return torch.rad2deg(torch.atan(-cov / var_y))


def width_of(images: Tensor) -> Tensor:
    """Standard deviation of x in pixels, (B,), of images (B, C, 28, 28), the slant taken out."""
    var_x, var_y, cov = _moments(images)
    return (var_x - cov.square() / var_y).clamp(min=0).sqrt()


def weight_of(images: Tensor) -> Tensor:
    """Thickness of the strokes in pixels, (B,), of images (B, C, 28, 28). NaN without ink.

    2 Σ g / Σ |∇g| with the ink g, forward differences and zeros outside: each of a stroke's two
    edges adds its length.
    """
    g = F.pad(images.amax(1), (1, 1, 1, 1))
    across, down = g[:, :-1, 1:] - g[:, :-1, :-1], g[:, 1:, :-1] - g[:, :-1, :-1]
    return 2 * g.sum((1, 2)) / torch.hypot(across, down).sum((1, 2))


def styles_of(images: Tensor) -> Tensor:
    """Slant, 100 × log width, and weight, (B, 3): their differences are degrees, % and pixels."""
    return torch.stack([slant_of(images), 100 * width_of(images).log(), weight_of(images)], 1)


def specks_of(images: Tensor) -> Tensor:
    """Share of the ink, (B,), outside the largest 8-connected part of images (B, C, 28, 28).

    Each pixel takes the largest label beside it, then that pixel's own label, until a part has one.
    """
    ink = images.amax(1)
    mask = ink > SPECK_LEVEL * ink.amax((1, 2), keepdim=True)
    ink, labels = (ink * mask).flatten(1), mask * torch.arange(1.0, 785, device=ink.device).view(28, 28)
    while not torch.equal(labels, spread := F.max_pool2d(labels[:, None], 3, 1, 1)[:, 0] * mask):
        places = (spread.flatten(1).long() - 1).clamp(min=0)  # a label is its pixel's place + 1
        labels = spread.flatten(1).gather(1, places).view_as(spread) * mask
    sums = torch.zeros(len(ink), 785, device=ink.device).scatter_add_(1, labels.flatten(1).long(), ink)
    return (1 - sums.amax(1) / ink.sum(1)).clamp(min=0)


def _right(images: Tensor, digits: Tensor, hues: Tensor) -> tuple[Tensor, Tensor]:
    """Which images (B, 3, 28, 28) have the wanted digits, and which the wanted hues: bool (B,)."""
    return digit_of(images) == digits, hue_distance(_in_batches(hue_of, images), hues) <= HUE_TOLERANCE


def _shares(name: str, digit: Tensor, hue: Tensor) -> dict[str, float]:
    parts = {"digit": digit, "hue": hue, "both": digit & hue}
    return {f"{name}_{part}": right.cpu().double().mean().item() for part, right in parts.items()}


def first_of_each_digit(digits: Tensor, n: int) -> Tensor:
    """Indices (10, n) of the first n images of each digit, repeated where there are fewer."""
    places = [(digits == digit).nonzero()[:, 0] for digit in range(10)]
    return torch.stack([place[torch.arange(n, device=place.device) % len(place)] for place in places])


# --------------------------------------------------------------------------------------------- ELBO


def _over(function: Callable, images: data.ColoredSet) -> Tensor:
    """What function(x) gives for a whole set, x being its images in their colours, in batches."""
    index = torch.arange(len(images), device=images.images.device)
    return _in_batches(lambda i: function(images.colored(i)), index)


def pixel_entropy(images: data.ColoredSet) -> float:
    """Binary entropy of a set's pixels, nats per image: no reconstruction loss is lower."""

    def entropy(x: Tensor) -> Tensor:
        return (torch.special.entr(x) + torch.special.entr(1 - x)).sum((1, 2, 3))

    return _over(entropy, images).cpu().double().mean().item()


@torch.inference_mode()
def mean_terms(terms_of: Callable[[Tensor], dict[str, Tensor]], test: data.ColoredSet) -> dict[str, float]:
    """Means over a set, nats per image, of terms_of(x), sums over a batch (B, 3, 28, 28)."""
    sums: dict[str, float] = {}
    for index in torch.arange(len(test), device=test.images.device).split(500):
        terms = terms_of(test.colored(index))
        sums = {name: sums.get(name, 0.0) + term.item() for name, term in terms.items()}
    return {name: value / len(test) for name, value in sums.items()}


def elbo(terms_of: Callable[[Tensor, bool], dict[str, Tensor]], test: data.ColoredSet) -> dict[str, float]:
    """-ELBO on the test set and each of its terms, nats per image, from one sample an image.

    `terms_of(x, hard)` draws relaxed samples, as in training, or one-hot (hard) ones. The relaxed
    value does not bound the likelihood, because its KL is that of the categories. The hard value
    does. Without categories the two are two draws of the same.
    """
    results = {"pixel_entropy": pixel_entropy(test)}
    for suffix, hard in (("", False), ("_hard", True)):
        terms = mean_terms(functools.partial(terms_of, hard=hard), test)
        results[f"test_loss{suffix}"] = sum(terms.values())
        results[f"test_above_floor{suffix}"] = sum(terms.values()) - results["pixel_entropy"]
        results |= {f"test_{name}{suffix}": value for name, value in terms.items()}
    return results


def epoch_row(
    train_terms: list[dict[str, Tensor]],
    terms_of: Callable,
    model: nn.Module,
    train: data.ColoredSet,
    test: data.ColoredSet,
) -> dict[str, float]:
    """A row of a VAE's history: means over an epoch's batches and the test set, nats per image.

    `train_terms`: the terms of -ELBO and of the rest of the loss, summed over each batch of the
    epoch. `terms_of(x)`: the terms of -ELBO on test images.
    """
    sums = map(sum, torch.stack([torch.stack([*terms.values()]) for terms in train_terms]).T.tolist())
    row = {f"train_{name}": value / len(train) for name, value in zip(train_terms[0], sums, strict=True)}
    row |= {f"test_{name}": value for name, value in mean_terms(terms_of, test).items()}
    return row | {"explained_variance": explained_variance(model, test)}


def print_epoch(history: list[dict], epochs: int) -> None:
    """A line of the log for the last row, nats per image. Warns once of a code that is empty."""
    row, parts = history[-1], [f"epoch {len(history):{len(str(epochs))}d}/{epochs}"]
    for part in ("train", "test"):
        terms = {name.removeprefix(f"{part}_"): value for name, value in row.items() if name.startswith(f"{part}_")}
        parts.append(f"{part}: " + "  ".join(f"{name} {value:6.2f}" for name, value in terms.items()))
    seconds = row["seconds"] - (history[-2]["seconds"] if len(history) > 1 else 0)
    left = f"  {seconds * (epochs - len(history)) / 60:4.1f} min left" * (len(history) > 1)
    tau = f"tau {row['tau']:.2f}  " if "tau" in row else ""
    print(*parts, f"{tau}{seconds:5.1f} s{left}", sep=" | ", flush=True)
    nothing = [row.get("explained_variance", 1) < NOTHING_EXPLAINED for row in history[-2:]]
    if nothing in ([True], [False, True]):  # the first epoch of which this is true
        print(
            "Warning: the code carries almost nothing: all images are decoded to nearly the same picture. If this "
            "stays so for some epochs, stop the run, and try another SEED or a lower LEARNING_RATE.",
            flush=True,
        )


# ------------------------------------------------------------------------------------- latent usage


def explained_variance(model: nn.Module, test: data.ColoredSet) -> float:
    """Share of the pixels' variance that codes explain when decoded, over 1,000 test images.

    1 - sum (x - picture)² / sum (x - mean image)². At most 1; 0 or less if all images are decoded
    to the same picture.
    """
    x = test.colored(slice(1000))
    with torch.inference_mode():
        pictures = model.decode(model.code(x))
    return (1 - (x - pictures).square().sum() / (x - x.mean(0)).square().sum()).item()


def codes_of(model: nn.Module, images: data.ColoredSet) -> Tensor:
    """The deterministic codes (n, D) of a whole set."""
    return _over(model.code, images)


def mutual_information(a: Tensor, b: Tensor) -> float:
    """Mutual information in nats of two int64 vectors (n,), from 0 on, by their joint histogram.

    This plug-in estimate is too high by about (|A| - 1)(|B| - 1) / 2n (Miller 1955): 0.01 nats for
    20 bins, 12 hues and 10,000 images.
    """
    n_a, n_b = int(a.max()) + 1, int(b.max()) + 1
    joint = torch.bincount((a * n_b + b).cpu(), minlength=n_a * n_b).double().view(n_a, n_b) / len(a)
    marginals = joint.sum(1), joint.sum(0)
    return (sum(torch.special.entr(p).sum() for p in marginals) - torch.special.entr(joint).sum()).item()


def discretize(latent: Tensor) -> Tensor:
    """A latent's columns (n, width) → int64 (n,): its category, or the bin of its value or angle.

    The N_VALUE_BINS bins of a number (width 1), or of the angle of two, hold equally many of the n
    values.
    """
    if is_categorical(latent):
        return latent.argmax(1)
    values = latent[:, 0] if latent.shape[1] == 1 else torch.atan2(latent[:, 1], latent[:, 0])
    ranks = values.argsort(stable=True).argsort(stable=True)
    return ranks * N_VALUE_BINS // len(ranks)


def is_categorical(latent: Tensor) -> bool:
    """Whether the columns of a latent in the codes, (n, width), are one-hot."""
    return latent.shape[1] > 1 and bool(((latent == 0) | (latent == 1)).all())


def latent_information(latents: dict[str, slice], codes: Tensor, images: data.ColoredSet) -> dict[str, dict]:
    """mi_digit and mi_hue (N_HUE_BINS bins) of each latent: mutual information in nats."""
    hue_bins = (images.hues.nan_to_num() * N_HUE_BINS / 360).long().clamp(max=N_HUE_BINS - 1)
    values = {name: discretize(codes[:, columns]) for name, columns in latents.items()}
    factors = {"mi_digit": images.digits, "mi_hue": hue_bins}
    return {
        name: {key: mutual_information(value, factor) for key, factor in factors.items()}
        for name, value in values.items()
    }


def latent_usage(model: nn.Module, codes: Tensor, test: data.ColoredSet) -> dict[str, dict]:
    """KL, information and used categories of each latent on test images. Warns of unused ones."""
    kl = _over(model.kl, test).mean(0)
    usage = latent_information(model.latents, codes, test)
    for (name, columns), nats in zip(model.latents.items(), kl.tolist(), strict=True):
        usage[name] = {"kl": nats} | usage[name]
        if is_categorical(codes[:, columns]):
            usage[name]["categories_used"] = len(codes[:, columns].argmax(1).unique())
        if nats < 0.01:
            print(f"Warning: latent {name} is dead (KL {nats:.4f} nats): the decoder learns nothing from it.")
        elif usage[name].get("categories_used") == 1:
            print(f"Warning: latent {name} is stuck: all test images are in one of its categories.")
    return usage


# ------------------------------------------------------------------------------------------ control


def reconstruction(model: nn.Module, codes: Tensor, test: data.ColoredSet) -> dict[str, float]:
    """Shares of test images whose digit, hue and both survive in the picture of their code."""
    return _shares("reconstruction", *_right(_in_batches(model.decode, codes), test.digits, test.hues))


def color_wheel_scores(latents: dict[str, slice], codes: Tensor, test: data.ColoredSet) -> dict[str, float]:
    """How far the first two numbers of codes (n, D) are a colour wheel; {} if there is only one.

    angle_mi_hue, angle_mi_digit: mutual information of the angle (N_VALUE_BINS bins) with the hue
    and with the digit, in nats; log N_HUE_BINS = 2.48 at most. radius_ink_correlation: Pearson's,
    of the radius and the image's ink.
    """
    if "z2" not in latents:
        return {}
    x, y = codes[:, 0], codes[:, 1]
    angle = latent_information({"angle": slice(0, 1)}, torch.atan2(y, x)[:, None], test)["angle"]
    ink = test.images.float().mean((1, 2))
    correlation = torch.corrcoef(torch.stack([torch.hypot(x, y), ink]))[0, 1].item()
    return {"angle_mi_hue": angle["mi_hue"], "angle_mi_digit": angle["mi_digit"], "radius_ink_correlation": correlation}


def reconstruction_examples(model: nn.Module, test: data.ColoredSet) -> tuple[Tensor, Tensor]:
    """The first 8 test images of each digit and their decoded codes: two (10, 8, 3, 28, 28)."""
    index = first_of_each_digit(test.digits, 8).flatten()
    x = test.colored(index)
    return x.unflatten(0, (10, 8)), model.decode(model.code(x)).unflatten(0, (10, 8))


def find_codes(codes: Tensor, train: data.ColoredSet, wanted: Tensor) -> Tensor:
    """Codes (R, 5, D) for requests (R, 2) of (digit, hue in degrees), out of training codes (n, D).

    One rule for every model, which uses only training codes and labels, neither the decoder nor the
    judge. A code stands for what its N_NEIGHBORS nearest training codes are: the share of each
    digit among them, and their mean hue, weighted by a Gaussian kernel of width BANDWIDTH (Nadaraya
    1964, Watson 1964), because hues differ by less than digits do. A code suits a request by its
    share of that digit, times exp(-(hue off / HUE_WIDTH)² / 2), times W / (W + 1), where W is the
    sum of the weights: dense neighbourhoods are preferred. The best CODES_PER_REQUEST different
    codes among those of the first N_SEARCHED training images are taken (repeated where there are
    fewer). BANDWIDTH fits codes of about unit spread, which a KL to N(0, 1) produces. The rule was
    chosen by its score on models of seed 0: other seeds are the fair test of it.
    """
    candidates = codes[:N_SEARCHED].cpu().unique(dim=0).to(codes.device)  # (Q, D); mps has none
    k = min(N_NEIGHBORS, len(codes))
    nearest = [torch.cdist(part, codes).topk(k, largest=False) for part in candidates.split(500)]
    neighbors = torch.cat([part.indices for part in nearest])  # (Q, k), as are weights
    weights = torch.cat([(-(part.values / BANDWIDTH).square() / 2).exp() for part in nearest])
    shares = F.one_hot(train.digits, 10).to(weights)[neighbors].mean(1)  # (Q, 10)
    angles = torch.deg2rad(train.hues.nan_to_num())[neighbors]  # (Q, k)
    hues = torch.rad2deg(torch.atan2((weights * angles.sin()).sum(1), (weights * angles.cos()).sum(1)))
    density = weights.sum(1) / (weights.sum(1) + 1)  # (Q,), as are hues
    off = hue_distance(hues[None], wanted[:, 1:])  # (R, Q), as is suits
    suits = shares.T[wanted[:, 0].long()] * density * (-(off / HUE_WIDTH).square() / 2).exp()
    best = suits.topk(min(CODES_PER_REQUEST, len(candidates))).indices
    return candidates[best[:, torch.arange(CODES_PER_REQUEST) % best.shape[1]]]


def demand_requests() -> Tensor:
    """All 10 digits × N_HUES hues, (240, 2): digit, hue in degrees. The hue varies faster."""
    hues = torch.arange(N_HUES) * 360 / N_HUES
    return torch.cartesian_prod(torch.arange(10.0), hues)


def control_on_demand(model: nn.Module, codes: Tensor, train: data.ColoredSet) -> tuple[dict, Tensor, Tensor]:
    """Meets every request with codes found among those of the training images.

    Returns the shares, the pictures of the requests' first codes, (10, N_HUES, 3, 28, 28), and
    whether each is right, bool (10, N_HUES).
    """
    wanted = demand_requests().to(codes)
    found = find_codes(codes, train, wanted)  # (240, 5, D)
    pictures = _in_batches(model.decode, found.flatten(0, 1))
    digits, hues = wanted.repeat_interleave(CODES_PER_REQUEST, 0).unbind(1)
    digit, hue = _right(pictures, digits, hues)
    first = (part[::CODES_PER_REQUEST].unflatten(0, (10, N_HUES)) for part in (pictures, digit & hue))
    return _shares("demand", digit, hue), *first


def color_latents(latents: dict[str, slice], codes: Tensor, train: data.ColoredSet) -> list[str]:
    """Names of the latents with more information on the hue than on the digit, in training."""
    information = latent_information(latents, codes, train)
    return [name for name in latents if information[name]["mi_hue"] > information[name]["mi_digit"]]


def swapped(latents: dict[str, slice], names: list[str], codes: Tensor, others: Tensor) -> Tensor:
    """Codes (n, D) whose latents of these names come from `others` (n, D)."""
    result = codes.clone()
    for name in names:
        result[:, latents[name]] = others[:, latents[name]]
    return result


def control_by_swap(model: nn.Module, codes: Tensor, names: list[str], test: data.ColoredSet) -> dict[str, float]:
    """Shares right when the latents `names` of one test image, its hue, replace those of another.

    Every test image provides the digit once and the hue once. They are paired at random, with a
    fixed seed.
    """
    partner = torch.randperm(len(codes), generator=torch.Generator().manual_seed(0)).to(codes.device)
    pictures = _in_batches(model.decode, swapped(model.latents, names, codes, codes[partner]))
    return _shares("swap", *_right(pictures, test.digits, test.hues[partner]))


def swap_examples(model: nn.Module, codes: Tensor, names: list[str], test: data.ColoredSet) -> tuple[Tensor, ...]:
    """The first test image of each digit in the hues of the first 8 test images.

    Returns the ten images that provide the digit, (10, 3, 28, 28), the eight that provide the hue,
    (8, ...), the decoded swaps, (8, 10, ...), and which of them are right, bool (8, 10).
    """
    for_digit = first_of_each_digit(test.digits, 1)[:, 0]
    for_hue = torch.arange(8, device=codes.device)
    down, across = for_hue.repeat_interleave(10), for_digit.repeat(8)
    pictures = model.decode(swapped(model.latents, names, codes[across], codes[down]))
    digit, hue = _right(pictures, test.digits[across], test.hues[down])
    swaps = (part.unflatten(0, (8, 10)) for part in (pictures, digit & hue))
    return test.colored(for_digit), test.colored(for_hue), *swaps


def plane_codes(code: Tensor, latents: dict[str, slice], ticks: Tensor) -> Tensor:
    """Copies (n, n, W) of a code (W,): z1 at the ticks (n,) from left to right, z2 upwards."""
    grid = code.repeat(len(ticks), len(ticks), 1)
    grid[:, :, 0] = ticks
    if "z2" in latents:
        grid[:, :, 1] = ticks.flip(0)[:, None]
    return grid


def hue_codes(codes: Tensor, train: data.ColoredSet, wanted: Tensor) -> Tensor:
    """Continuous numbers (H, D) for hues (H,) in degrees: medians of training codes (n, D).

    The codes are those of training images whose hue is within 5°, or of all images where there is
    none.
    """
    near = [hue_distance(train.hues, hue) < 5 for hue in wanted]
    return torch.stack([codes[one if one.any() else ~one].median(0).values for one in near])


def category_counts(codes: Tensor, digits: Tensor) -> Tensor:
    """Images by category and digit: one-hot codes (n, K), digits (n,) → int64 (K, 10)."""
    return (codes.T @ F.one_hot(digits, 10).to(codes)).round().long().cpu()


class Evaluation(NamedTuple):
    """What `evaluate` measured, and the tensors behind it, for the figures."""

    results: dict  # name → plain floats
    floors: dict  # the pixel entropy of the "train" and of the "test" images, nats per image
    train_codes: Tensor  # (n, D)
    test_codes: Tensor  # (n, D)
    reconstructions: tuple[Tensor, ...]  # from reconstruction_examples
    demand: tuple[Tensor, ...]  # pictures, and which are right, from control_on_demand
    swaps: tuple[Tensor, ...]  # from swap_examples


@torch.inference_mode()
def evaluate(model: nn.Module, terms_of: Callable, train: data.ColoredSet, test: data.ColoredSet) -> Evaluation:
    """All scores that the VAEs have in common. `terms_of(x, hard)` as in `elbo`."""
    train_codes, test_codes = codes_of(model, train), codes_of(model, test)
    names = ["hue"] if "hue" in model.latents else color_latents(model.latents, train_codes, train)
    demand, *demand_pictures = control_on_demand(model, train_codes, train)
    results = {
        **elbo(terms_of, test),
        **reconstruction(model, test_codes, test),
        **demand,
        **control_by_swap(model, test_codes, names, test),
        "color_latents": names,
        "latents": latent_usage(model, test_codes, test),
    }
    floors = {"train": pixel_entropy(train), "test": results["pixel_entropy"]}
    examples = reconstruction_examples(model, test), tuple(demand_pictures)
    return Evaluation(
        results, floors, train_codes, test_codes, *examples, swap_examples(model, test_codes, names, test)
    )


# -------------------------------------------------------------------------------------------- knobs


def knob_scores(model: nn.Module, scores: Evaluation, train: data.ColoredSet, test: data.ColoredSet) -> dict:
    """All scores of vae_knobs.py beside those that the VAEs have in common."""
    codes = scores.test_codes
    digit = digit_knob(model, scores, train, test)
    return digit | style_knobs(model, codes, test) | {"knobs_kept": knobs_kept(model, codes, test)}


def digit_knob(model: nn.Module, scores: Evaluation, train: data.ColoredSet, test: data.ColoredSet) -> dict:
    """Is the digit variable the digit, and does setting it draw the digit?

    category_digits: each category's name, the digit most common among the training images in it.
    digit_accuracy: share of test images whose category has their digit's name; drawings_digit: of
    data.drawings(), which judge_drawings says of the classifier. knob_*: every test image's digit
    is set to a random one (its largest category), and its hue to another test image's. Right when
    the judge sees the wanted digit, and the hue is the other image's. A digit without a category is
    drawn wrong. Digits and pairs are drawn with a fixed seed. category_counts: of test images.
    """
    train_codes, test_codes, columns = scores.train_codes, scores.test_codes, model.latents["digit"]
    counts = category_counts(train_codes[:, columns], train.digits)  # (K, 10)
    of_category = counts.argmax(1)  # (K,)
    mine = torch.where(F.one_hot(of_category, 10).bool(), counts, -1)  # the naming digit's
    of_digit, without = mine.argmax(0).to(test_codes.device), (mine <= 0).all(0).to(test_codes.device)
    if without.any():
        lost = ", ".join(data.class_names()[digit] for digit in without.nonzero().flatten().tolist())
        print(f"Warning: no category is named after {lost}: the knob cannot draw that.")
    in_test = category_counts(test_codes[:, columns], test.digits)
    generator = torch.Generator().manual_seed(0)
    partner = torch.randperm(len(test), generator=generator).to(test_codes.device)
    wanted = torch.randint(10, (len(test),), generator=generator).to(test_codes.device)
    turned = swapped(model.latents, ["hue"], test_codes, test_codes[partner])
    turned[:, columns] = F.one_hot(of_digit[wanted], len(counts)).to(turned)
    digit, hue = _right(_in_batches(model.decode, turned), wanted, test.hues[partner])
    grey, drawn = (part.to(test_codes.device) for part in data.drawings())
    drawings = data.colorize(grey, data.random_colors(len(grey), data.TEST_COLOR_SEED).to(grey.device))
    read = of_category.to(grey.device)[model.code(drawings)[:, columns].argmax(1)]
    return {
        "category_digits": of_category.tolist(),
        "digit_accuracy": in_test.gather(1, of_category[:, None]).sum().item() / len(test),
        "drawings_digit": (read == drawn).float().mean().item(),
        "judge_drawings": (digit_of(drawings) == drawn).float().mean().item(),
        **_shares("knob", digit & ~without[wanted], hue),
        "category_counts": in_test.tolist(),
    }


def _decoded_styles(model: nn.Module, codes: Tensor) -> Tensor:
    return _in_batches(lambda part: styles_of(model.decode(part)), codes)


def deformed(images: Tensor, knob: str, step: float) -> Tensor:
    """Images (B, C, 28, 28) with slant (degrees), width (%) or weight (pixels) moved by `step`."""
    slant, none = torch.deg2rad(slant_of(images)), torch.zeros(len(images), device=images.device)
    moves = {
        "slant": (slant + math.radians(step)).tan() - slant.tan(),
        "width": none + math.copysign(math.log1p(abs(step) / 100), step),
        "weight": none + step,
    }
    return data.restyle(images, *(move if name == knob else none for name, move in moves.items()))


def style_knobs(model: nn.Module, codes: Tensor, test: data.ColoredSet) -> dict:
    """How exactly slant, width and weight follow their knobs, from the codes (n, D) of test images.

    knob_*_error: median |measured - asked| of a move by ± KNOB_STEPS from the image's own value, in
    degrees, % and pixels; knob_*_gain: median measured / asked. crosstalk: of each knob and each
    other measure the median |change|, as a share of that measure's standard deviation over test
    images, less the same for the test images deformed so; the largest of the six.
    """
    grey = test.images[:, None] / 255
    own, before = _in_batches(styles_of, grey), _decoded_styles(model, codes)
    results, crosstalk = {}, {}
    for i, (knob, step) in enumerate(KNOB_STEPS.items()):
        changes, truth, asked = [], [], []
        for move in (-step, step):
            changes.append(_decoded_styles(model, model.turned(codes, knob, move)) - before)
            truth.append(_in_batches(lambda x, m=move, k=knob: styles_of(deformed(x, k, m)), grey) - own)
            asked.append(math.copysign(100 * math.log1p(step / 100), move) if knob == "width" else move)
        changes, truth, asked = torch.cat(changes), torch.cat(truth), torch.tensor(asked).repeat_interleave(len(codes))
        measured, asked = changes[:, i], asked.to(codes)
        results[f"knob_{knob}_error"] = (measured - asked).abs().nanmedian().item()
        results[f"knob_{knob}_gain"] = (measured / asked).nanmedian().item()
        moved, by_itself = (part.abs().nanmedian(0).values / own.std(0) for part in (changes, truth))
        excess = (moved - by_itself).tolist()
        crosstalk |= {f"{knob}_{other}": excess[j] for j, other in enumerate(KNOB_STEPS) if j != i}
    return results | {"crosstalk": max(crosstalk.values()), "crosstalk_pairs": crosstalk}


def knobs_kept(model: nn.Module, codes: Tensor, test: data.ColoredSet) -> dict:
    """Digit and hue kept, and specks, with each knob at ±1 and ±2 standard deviations, by knob.

    The share of test images whose digit, hue and both are kept in the picture, and the share of its
    ink in specks. "own": every knob at the image's own value; "image": the specks of the test
    images themselves.
    """
    rows = {"own": codes}
    for knob in KNOB_STEPS:
        column = codes[:, model.latents[knob]]
        for deviations in (-2, -1, 1, 2):
            rows[f"{knob} {deviations:+d}"] = codes.clone()
            rows[f"{knob} {deviations:+d}"][:, model.latents[knob]] = column.mean() + deviations * column.std()
    results = {"image": {"specks": _in_batches(specks_of, test.images[:, None] / 255).mean().item()}}
    for name, turned in rows.items():
        pictures = _in_batches(model.decode, turned)
        shares = {
            key.removeprefix("_"): value
            for key, value in _shares("", *_right(pictures, test.digits, test.hues)).items()
        }
        results[name] = shares | {"specks": _in_batches(specks_of, pictures).mean().item()}
    return results


def knob_curves(model: nn.Module, codes: Tensor, n: int = 9) -> dict[str, tuple[str, Tensor, Tensor]]:
    """Each style knob's unit, n moves (n,) to ± two KNOB_STEPS, and their changes (n, images)."""
    before, curves = _decoded_styles(model, codes), {}
    for i, (knob, unit) in enumerate({"slant": "degrees", "width": "%", "weight": "pixels"}.items()):
        asked = torch.linspace(-2, 2, n) * KNOB_STEPS[knob]
        moved = [(_decoded_styles(model, model.turned(codes, knob, move)) - before)[:, i] for move in asked.tolist()]
        moved = torch.stack(moved)
        curves[knob] = unit, asked, moved.sign() * 100 * (moved.abs() / 100).expm1() if knob == "width" else moved
    return curves


def knob_steps(model: nn.Module, scores: Evaluation, train: data.ColoredSet, code: Tensor, knob: str, n: int) -> dict:
    """Caption → a code (D,) with one knob set to each digit, to n hues, or moved in n steps.

    `scores` needs the results of digit_knob.
    """
    if knob in KNOB_STEPS:
        decimals, unit, largest = {"slant": (0, "°", 27), "width": (0, "%", 27), "weight": (1, " px", 0.9)}[knob]
        steps = torch.linspace(-largest, largest, n).tolist()
        return {f"{step:+.{decimals}f}{unit}": model.turned(code[None], knob, step)[0] for step in steps}
    if knob == "digit":
        names = scores.results["category_digits"]
        sizes = scores.results["category_counts"]  # of two with one name the larger is last: it stays
        order = sorted(range(len(names)), key=lambda k: (names[k], sizes[k][names[k]]))
        values, captions = (
            torch.eye(len(names), device=code.device)[order],
            [data.class_names()[names[k]] for k in order],
        )
    else:
        hues = torch.arange(n, device=code.device) * 360 / n
        values = hue_codes(scores.train_codes[:, model.latents["hue"]], train, hues)
        captions = [f"{hue:.0f}°" for hue in hues.tolist()]
    turned = code.repeat(len(values), 1)
    turned[:, model.latents[knob]] = values
    return dict(zip(captions, turned, strict=True))


def knob_rows(model: nn.Module, scores: Evaluation, train: data.ColoredSet, test: data.ColoredSet) -> dict:
    """For each knob a test image (3, 28, 28), ten pictures with the knob moved, and captions."""
    rows, firsts = {}, first_of_each_digit(test.digits, 1)[[7, 2, 4, 5, 3], 0].tolist()
    for index, knob in zip(firsts, ("digit", "hue", *KNOB_STEPS), strict=True):
        turned = knob_steps(model, scores, train, scores.test_codes[index], knob, 10)
        rows[knob] = test.colored(slice(index, index + 1))[0], model.decode(torch.stack([*turned.values()])), [*turned]
    return rows


def knob_film(model: nn.Module, scores: Evaluation, train: data.ColoredSet) -> tuple[Tensor, list[str], list[str]]:
    """The digits in the first test image's style, while one knob after another moves and returns.

    Returns the frames (T, 1, 10, 3, 28, 28), what each shows, and the digits.
    """
    code, frames, titles = scores.test_codes[0], [], []
    digits = knob_steps(model, scores, train, code, "digit", 10)
    style = slice(0, model.latents["digit"].start)
    for knob in ("hue", *KNOB_STEPS):
        turned = [*knob_steps(model, scores, train, code, knob, 24 if knob == "hue" else 13).items()]
        for value, moved in turned if knob == "hue" else turned[6:] + turned[::-1] + turned[:6]:
            ten = torch.stack([*digits.values()])
            ten[:, style] = moved[style]
            frames.append(model.decode(ten))
            titles.append(f"{knob} {value}")
    return torch.stack(frames)[:, None], titles, [*digits]


# -------------------------------------------------------------------------------------- translation


class Direction(NamedTuple):
    """A direction of translation, (B, 3, 28, 28) → the same in [0, 1], and its colours by digit."""

    translate: Callable[[Tensor], Tensor]
    source: Tensor  # RGB (10, 3)
    target: Tensor  # RGB (10, 3)

    @torch.inference_mode()
    def outputs(self, grey: Tensor, digits: Tensor) -> Tensor:
        """Translations (n, 3, 28, 28) of images `grey` (n, 28, 28) in the source's colours."""
        result = torch.empty((len(digits), 3, 28, 28), device=grey.device, memory_format=torch.channels_last)
        for part in torch.arange(len(digits), device=grey.device).split(50):  # fits a cache
            result[part] = self.translate(data.colorize(grey[part], self.source[digits[part]]))
        return result


def color_of(images: Tensor, grey: Tensor) -> Tensor:
    """RGB (B, 3) of the ink of images (B, 3, 28, 28), given its amount `grey` uint8 (B, 28, 28).

    It is the least-squares colour: grey level × colour fits the image best with it.
    """
    ink = grey[:, None] / 255
    return (ink * images).sum((2, 3)) / ink.square().sum((2, 3))


def nearest(images: Tensor, grey: Tensor, colors: Tensor) -> Tensor:
    """Which of the colours (10, 3) each image's ink is nearest to in RGB, Euclidean: int64 (B,)."""
    return torch.cdist(color_of(images, grey), colors).argmin(1)


def translation_scores(name: str, outputs: Tensor, grey: Tensor, digits: Tensor, target: Tensor) -> tuple[dict, Tensor]:
    """Scores of images (n, 3, 28, 28) that should be `grey` in the target colours (10, 3).

    `grey` (n, 28, 28) has these digits (n,). digit: the judge still sees it. color: of the ten
    target colours, the one nearest to the ink's (RGB, Euclidean) is the digit's. exact: the ink's
    colour is within COLOR_TOLERANCE of the digit's. both: digit and exact. l1: mean absolute
    difference to the true target. psnr: of the mean squared difference, in dB (None where there is
    no difference). The first three by digit, too. Also returns which images are right in both, bool
    (n,).
    """
    ink, wanted = color_of(outputs, grey), target[digits]
    right = {
        "digit": digit_of(outputs) == digits,
        "color": nearest(outputs, grey, target) == digits,
        "exact": (ink - wanted).norm(dim=1) <= COLOR_TOLERANCE,
    }
    scores = {
        f"{name}_{part}_by_digit": [hits[digits == d].cpu().double().mean().item() for d in range(10)]
        for part, hits in right.items()
    }
    right["both"] = right["digit"] & right["exact"]
    scores |= {f"{name}_{part}": hits.cpu().double().mean().item() for part, hits in right.items()}
    difference = outputs - data.colorize(grey, wanted)
    mse = difference.square().mean().item()
    scores[f"{name}_l1"] = difference.abs().mean().item()
    scores[f"{name}_psnr"] = -10 * math.log10(mse) if mse > 0 else None
    return scores, right["both"]


def color_map(outputs: Tensor, grey: Tensor, digits: Tensor, target: Tensor) -> Tensor:
    """Share of each digit's images nearest to each of the target colours (10, 3): (10, 10)."""
    found = nearest(outputs, grey, target)
    return torch.stack([torch.bincount(found[digits == d], minlength=10) / (digits == d).sum() for d in range(10)])


def translation_row(directions: dict[str, Direction], images: Tensor, digits: Tensor) -> dict:
    """A row of the history: scores of the first 2,000 images (n, 28, 28), and pictures.

    The pictures, uint8 (2, 10, 3, 28, 28), are the first test image of each digit as it is
    translated now. "right", bool (2, 10): whether their colours are. For each direction a list by
    digit: the colour in which most of its images come out.
    """
    row, pictures, right = {}, [], []
    first = first_of_each_digit(digits, 1)[:, 0]
    for name, direction in directions.items():
        outputs = direction.outputs(images[:2000], digits[:2000])
        scores, _ = translation_scores(name, outputs, images[:2000], digits[:2000], direction.target)
        row |= {f"{name}_{part}": scores[f"{name}_{part}"] for part in ("digit", "color", "exact")}
        shares = color_map(outputs, images[:2000], digits[:2000], direction.target)
        row[f"{name}_colors"] = shares.argmax(1).tolist()
        pictures.append(direction.outputs(images[first], digits[first]))
        right.append(nearest(pictures[-1], images[first], direction.target) == digits[first])
    return row | {"pictures": torch.stack(pictures).mul(255).round().byte().cpu(), "right": torch.stack(right).cpu()}


def print_translation(row: dict, steps: int) -> None:
    """A line of the log for a row of the history, of a run of so many steps."""
    labels = {"digit": "digit", "color": "colour", "exact": "exact"}
    ways = [
        f"{way}: " + "  ".join(f"{label} {row[f'{way}_{part}']:6.1%}" for part, label in labels.items())
        for way in ("a_to_b", "b_to_a")
    ]
    done = f"{row['step']:{len(str(steps))}d}/{steps} updates"
    print(done, *ways, f"{row['seconds'] / 60:4.1f} min", sep=" | ", flush=True)


def evaluate_translation(directions: dict[str, Direction], grey: Tensor, digits: Tensor) -> tuple[dict, dict, dict]:
    """Scores both directions on test images `grey` (n, 28, 28), beside identity and oracle.

    by_color_alone: in the colour of another random digit, images come out in its partner. Returns
    the results; for each direction examples, the first four images of each digit:
    originals, translations, targets, each (4, 10, 3, 28, 28), and which are right, bool (4, 10);
    and for each direction its color_map.
    """
    shown = first_of_each_digit(digits, 4).T
    shift = torch.randint(1, 10, digits.shape, generator=torch.Generator().manual_seed(0)).to(digits.device)
    others = (digits + shift) % 10  # of each image another random digit, whose colour it gets
    results, examples, maps = {}, {}, {}
    for name, direction in directions.items():
        x = direction.outputs(grey, digits)
        scores, right = translation_scores(name, x, grey, digits, direction.target)
        results, maps[name], pictures = results | scores, color_map(x, grey, digits, direction.target), [x[shown]]
        for kind, colors in (("identity", direction.source), ("oracle", direction.target)):
            x = data.colorize(grey, colors[digits])  # 94 MB, in place of the images before
            results |= translation_scores(f"{kind}_{name}", x, grey, digits, direction.target)[0]
            pictures.append(x[shown])
        partners = nearest(direction.outputs(grey, others), grey, direction.target)
        results[f"{name}_by_color_alone"] = (partners == others).double().mean().item()
        translations, originals, targets = pictures
        examples[name] = originals, translations, targets, right[shown]
    return results, examples, maps
