"""The scores: a judge that reads digits, a reader of hues, and what a latent code controls.

`python metrics.py` trains the judge on the training images and saves it to outputs/metrics/<DATASET>/ (its weights are
tracked, so that no run waits for it). Everything else here is called by the model scripts on what they learned. Labels
train the judge alone: of a VAE or a generator they name and score what it learned.

Scores are shares in [0, 1]; hues are degrees; information is in nats.
"""

import functools
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import data
import runs

# The judge's training. Changing these changes the ruler, not a model.
SEED = 0
EPOCHS = 8
BATCH_SIZE = 120
LEARNING_RATE = 0.004  # peak of the one-cycle schedule
MAX_SHIFT = 2.0  # pixels, either way, along each axis
MAX_ROTATION = 12.0  # degrees
MAX_SCALE = 0.1  # share of the size, up or down

OUTPUT_DIR = Path(__file__).parent / "outputs" / "metrics"

HUE_TOLERANCE = 15.0  # degrees: a hue is right when it is no further off
N_HUES = 24  # requested hues, evenly spaced from 0 degrees
CODES_PER_REQUEST = 5
N_SEARCHED = 10_000  # training images whose codes may be chosen for a request
N_NEIGHBORS = 50  # training codes that tell what a code stands for
BANDWIDTH = 0.1  # of the kernel that weighs them, in the units of the code
HUE_WIDTH = 10.0  # degrees: how fast a code gets less suitable as its hue is off
N_HUE_BINS = 12  # for mutual information with the hue
N_VALUE_BINS = 20  # equally filled bins of a continuous latent, for mutual information


# ------------------------------------------------------------------------------------------------- the judge


class Judge(nn.Sequential):
    """Reads the digit from an image of any colour: (B, 3, 28, 28) in [0, 1] → logits (B, 10)."""

    def __init__(self):
        def block(channels_in: int, channels_out: int) -> list[nn.Module]:
            return [
                nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
                nn.BatchNorm2d(channels_out),
                nn.ReLU(),
            ]

        super().__init__(
            *block(1, 16),
            nn.MaxPool2d(2),  # 14 × 14
            *block(16, 32),
            *block(32, 32),
            nn.MaxPool2d(2),  # 7 × 7
            *block(32, 64),
            *block(64, 64),
            nn.MaxPool2d(2),  # 3 × 3
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(64 * 3 * 3, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        ink = x.amax(1, keepdim=True)  # (B, 1, 28, 28): the grey level, whatever the hue
        return super().forward(ink / ink.amax((2, 3), keepdim=True).clamp(min=1e-6))


def main() -> dict[str, float]:
    """Trains the judge, prints its share right on the test digits in grey and in colour, saves weights and results."""
    started = time.perf_counter()
    names = ("SEED", "EPOCHS", "BATCH_SIZE", "LEARNING_RATE", "MAX_SHIFT", "MAX_ROTATION", "MAX_SCALE")
    constants = runs.constants({name: globals()[name] for name in names})
    folder = OUTPUT_DIR / str(data.DATASET)
    device = runs.begin(folder, constants)
    images, digits = (t.to(device) for t in data.load(train=True))
    torch.manual_seed(SEED)
    judge = Judge().to(device, memory_format=torch.channels_last)
    steps = EPOCHS * math.ceil(len(images) / BATCH_SIZE)
    optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for epoch in range(1, EPOCHS + 1):
        judge.train()
        batches = torch.randperm(len(images)).to(device).split(BATCH_SIZE)
        for index in tqdm(batches, f"epoch {epoch}/{EPOCHS}", leave=False, disable=None):
            x = data.colorize(images[index], torch.ones(len(index), 3, device=device))
            loss = F.cross_entropy(judge(_jitter(x)), digits[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch:2d}/{EPOCHS}   loss of the last batch {loss.item():.4f}")

    judge.eval()
    images, digits = (t.to(device) for t in data.load(train=False))
    grey = data.colorize(images, torch.ones(len(images), 3, device=device))
    colored = data.colorize(images, data.random_colors(len(images), data.TEST_COLOR_SEED).to(device))
    results = {
        f"judge_{name}": (_in_batches(judge, x).argmax(1) == digits).float().mean().item()
        for name, x in (("grey", grey), ("colored", colored))
    }
    runs.save_torch(folder / "judge.pt", judge.state_dict())
    runs.finish(folder, constants, time.perf_counter() - started, results)
    return results


def _jitter(x: Tensor) -> Tensor:
    """x (B, 1 or 3, 28, 28), each image shifted, turned and scaled a little at random."""
    shift, angle, scale = torch.rand(3, 2, len(x), device=x.device) * 2 - 1
    shift = shift * MAX_SHIFT / 14  # the image spans [-1, 1]
    angle, scale = angle[0] * math.radians(MAX_ROTATION), 1 + scale[0] * MAX_SCALE
    cos, sin = angle.cos() * scale, angle.sin() * scale
    theta = torch.stack([torch.stack([cos, -sin, shift[0]], 1), torch.stack([sin, cos, shift[1]], 1)], 1)
    return F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False)


def _in_batches(function, x: Tensor, size: int = 500) -> Tensor:
    with torch.inference_mode():
        return torch.cat([function(batch) for batch in x.split(size)])


def judge(device: torch.device) -> Judge:
    """The trained judge of data.DATASET on a device, in eval mode. Where there is none yet, it is trained first."""
    path = OUTPUT_DIR / data.DATASET / "judge.pt"
    if not path.exists():
        print(f"There is no judge for {data.DATASET} yet: training it, once.")
        main()
    return _load_judge(path, device)


@functools.cache
def _load_judge(path: Path, device: torch.device) -> Judge:
    model = Judge()
    try:
        model.load_state_dict(runs.load_torch(path))
    except (RuntimeError, TypeError, AttributeError):
        raise SystemExit(f"{path} is not a judge's weights: delete it, then run python metrics.py.") from None
    return model.to(device, memory_format=torch.channels_last).eval()


def digit_of(images: Tensor) -> Tensor:
    """Judged digit of images (B, 3, 28, 28) in [0, 1]: int64 (B,)."""
    return _in_batches(lambda x: judge(x.device)(x).argmax(1), images, 50)  # what a cache holds: faster than 500


def hue_of(images: Tensor) -> Tensor:
    """Hue in degrees, (B,), of the ink-weighted mean RGB of images (B, 3, 28, 28); NaN where there is none.

    A pixel's ink is the maximum of its channels, so that the black ground has no say.
    """
    ink = images.amax(1, keepdim=True)
    return data.rgb_to_hue((ink * images).sum((2, 3)) / ink.sum((2, 3)))


def hue_distance(a: Tensor, b: Tensor) -> Tensor:
    """Degrees between hues the shorter way round the wheel, in [0, 180]."""
    return ((a - b + 180) % 360 - 180).abs()


def _right(images: Tensor, digits: Tensor, hues: Tensor) -> tuple[Tensor, Tensor]:
    """Which images (B, 3, 28, 28) show the wanted digits, and which the wanted hues: two bool (B,)."""
    return digit_of(images) == digits, hue_distance(_in_batches(hue_of, images), hues) <= HUE_TOLERANCE


def _shares(name: str, digit: Tensor, hue: Tensor) -> dict[str, float]:
    parts = {"digit": digit, "hue": hue, "both": digit & hue}
    return {f"{name}_{part}": right.cpu().double().mean().item() for part, right in parts.items()}


def first_of_each_digit(digits: Tensor, n: int) -> Tensor:
    """Indices (10, n) of the first n images of each digit, in their order (over again where there are fewer)."""
    places = [(digits == digit).nonzero()[:, 0] for digit in range(10)]
    return torch.stack([place[torch.arange(n, device=place.device) % len(place)] for place in places])


# ---------------------------------------------------------------------------------------------------- ELBO


def pixel_entropy(images: data.ColoredSet) -> float:
    """Nats per image that no reconstruction can go below: the binary entropy of the fractional pixels themselves."""

    def entropy(index: Tensor) -> Tensor:
        x = data.colorize(images.images[index], images.colors[index])
        return (torch.special.entr(x) + torch.special.entr(1 - x)).sum((1, 2, 3))

    index = torch.arange(len(images.images), device=images.images.device)
    return _in_batches(entropy, index).cpu().double().mean().item()


@torch.inference_mode()
def mean_terms(terms_of: Callable[[Tensor], dict[str, Tensor]], test: data.ColoredSet) -> dict[str, float]:
    """Nats per image over a whole set. `terms_of(x)` gives the terms of -ELBO summed over a batch (B, 3, 28, 28)."""
    sums: dict[str, float] = {}
    for index in torch.arange(len(test.images), device=test.images.device).split(500):
        terms = terms_of(data.colorize(test.images[index], test.colors[index]))
        sums = {name: sums.get(name, 0.0) + term.item() for name, term in terms.items()}
    return {name: value / len(test.images) for name, value in sums.items()}


def elbo(terms_of: Callable[[Tensor, bool], dict[str, Tensor]], test: data.ColoredSet) -> dict[str, float]:
    """-ELBO on the test set and each term of it, nats per image, from one sample an image.

    `terms_of(x, hard)` draws relaxed samples, as trained, or one-hot ones. The relaxed value is no bound on the
    likelihood, since its KL is that of the categories; the hard one is. For a model without categories the two are
    two draws of the same.
    """
    results = {"pixel_entropy": pixel_entropy(test)}
    for suffix, hard in (("", False), ("_hard", True)):
        terms = mean_terms(functools.partial(terms_of, hard=hard), test)
        results[f"test_loss{suffix}"] = sum(terms.values())
        results[f"test_above_floor{suffix}"] = sum(terms.values()) - results["pixel_entropy"]
        results |= {f"test_{name}{suffix}": value for name, value in terms.items()}
    return results


# -------------------------------------------------------------------------------------------- latent usage


def codes_of(model: nn.Module, images: data.ColoredSet) -> Tensor:
    """The deterministic codes (n, D) of a whole set."""
    index = torch.arange(len(images.images), device=images.images.device)
    return _in_batches(lambda i: model.code(data.colorize(images.images[i], images.colors[i])), index)


def mutual_information(a: Tensor, b: Tensor) -> float:
    """Mutual information in nats of two int64 vectors (n,) of symbols from 0, from their joint histogram.

    The plug-in estimate: too high by about (|A| - 1)(|B| - 1) / 2n (Miller 1955), 0.01 nats for 20 bins, 12 hues and
    10,000 images.
    """
    n_a, n_b = int(a.max()) + 1, int(b.max()) + 1
    joint = torch.bincount((a * n_b + b).cpu(), minlength=n_a * n_b).double().view(n_a, n_b) / len(a)
    marginals = joint.sum(1), joint.sum(0)
    return (sum(torch.special.entr(p).sum() for p in marginals) - torch.special.entr(joint).sum()).item()


def symbols(latent: Tensor) -> Tensor:
    """One latent's part of the codes, (n, width), as symbols (n,): its category, or the bin of its value.

    A continuous latent (width 1) is cut into N_VALUE_BINS bins that hold equally many of the n values.
    """
    if latent.shape[1] > 1:
        return latent.argmax(1)
    ranks = latent[:, 0].argsort(stable=True).argsort(stable=True)
    return ranks * N_VALUE_BINS // len(ranks)


def information(latents: dict[str, slice], codes: Tensor, images: data.ColoredSet) -> dict[str, dict[str, float]]:
    """For each latent its mutual information with the digit and with the hue (N_HUE_BINS bins), in nats."""
    hue_bins = (images.hues.nan_to_num() * N_HUE_BINS / 360).long().clamp(max=N_HUE_BINS - 1)
    return {
        name: {
            "mi_digit": mutual_information(symbols(codes[:, columns]), images.digits),
            "mi_hue": mutual_information(symbols(codes[:, columns]), hue_bins),
        }
        for name, columns in latents.items()
    }


def latent_usage(model: nn.Module, codes: Tensor, test: data.ColoredSet) -> dict[str, dict]:
    """KL, mutual information and categories in use of each latent on test images; warns of one that is of no use."""
    index = torch.arange(len(test.images), device=test.images.device)
    kl = _in_batches(lambda i: model.kl(data.colorize(test.images[i], test.colors[i])), index).mean(0)
    usage = information(model.latents, codes, test)
    for (name, columns), nats in zip(model.latents.items(), kl.tolist(), strict=True):
        usage[name] = {"kl": nats} | usage[name]
        if columns.stop - columns.start > 1:
            usage[name]["categories_used"] = len(codes[:, columns].argmax(1).unique())
        if nats < 0.01:
            print(f"Warning: latent {name} is dead (KL {nats:.4f} nats): the decoder learns nothing from it.")
        elif usage[name].get("categories_used") == 1:
            print(f"Warning: latent {name} is stuck: all test images are in one of its categories.")
    return usage


# ------------------------------------------------------------------------------------------------- control


def reconstruction(model: nn.Module, codes: Tensor, test: data.ColoredSet) -> dict[str, float]:
    """Shares of test images whose digit, hue and both survive in the picture decoded from their code."""
    return _shares("reconstruction", *_right(_in_batches(model.decode, codes), test.digits, test.hues))


def wheel(codes: Tensor, test: data.ColoredSet) -> dict[str, float]:
    """What angle and radius of the first two numbers of the codes (n, D) tell: is the plane a colour wheel?

    angle_mi_hue: mutual information of the angle (N_VALUE_BINS bins) and the hue, in nats, log N_HUE_BINS = 2.48 at
    most; radius_ink_correlation: Pearson's, of the distance from the origin and the ink of the image.
    """
    x, y = codes[:, 0], codes[:, 1]
    angle = torch.atan2(y, x)[:, None]
    told = information({"angle": slice(0, 1)}, angle, test)["angle"]
    ink = test.images.float().mean((1, 2))
    correlation = torch.corrcoef(torch.stack([torch.hypot(x, y), ink]))[0, 1].item()
    return {"angle_mi_hue": told["mi_hue"], "angle_mi_digit": told["mi_digit"], "radius_ink_correlation": correlation}


def reconstructed(model: nn.Module, test: data.ColoredSet) -> tuple[Tensor, Tensor]:
    """The first 8 test images of each digit and the pictures decoded from their codes: two (10, 8, 3, 28, 28)."""
    index = first_of_each_digit(test.digits, 8).flatten()
    x = data.colorize(test.images[index], test.colors[index])
    return x.unflatten(0, (10, 8)), model.decode(model.code(x)).unflatten(0, (10, 8))


def find_codes(codes: Tensor, train: data.ColoredSet, wanted: Tensor) -> Tensor:
    """Codes for requests (R, 2) of (digit, hue in degrees), chosen among the training set's codes (n, D): (R, 5, D).

    One rule for every model, from training codes and labels alone; neither the decoder nor the judge is asked.
    What a code stands for is read off its N_NEIGHBORS nearest training codes: the share of each digit among them, and
    their mean hue, weighted by a Gaussian kernel of width BANDWIDTH (Nadaraya 1964, Watson 1964), since hues are told
    apart by the finest differences. A code suits a request by its share of that digit, times
    exp(-(hue off / HUE_WIDTH)² / 2), times W / (W + 1) with W the sum of the weights: a crowd is trusted over a loner.
    The best CODES_PER_REQUEST of the different codes of the first N_SEARCHED training images are taken (over again
    where there are fewer). BANDWIDTH fits codes of about unit spread, as a KL to N(0, 1) makes them.
    The rule was picked by its score on models of seed 0; other seeds are the fair test of it.
    """
    candidates = codes[:N_SEARCHED].unique(dim=0)  # (Q, D)
    k = min(N_NEIGHBORS, len(codes))
    nearest = [torch.cdist(part, codes).topk(k, largest=False) for part in candidates.split(500)]
    neighbors = torch.cat([part.indices for part in nearest])  # (Q, k)
    weights = torch.cat([(-(part.values / BANDWIDTH).square() / 2).exp() for part in nearest])  # (Q, k)
    shares = F.one_hot(train.digits, 10).to(weights)[neighbors].mean(1)  # (Q, 10)
    angles = torch.deg2rad(train.hues.nan_to_num())[neighbors]  # (Q, k)
    hues = torch.rad2deg(torch.atan2((weights * angles.sin()).sum(1), (weights * angles.cos()).sum(1)))  # (Q,)
    crowd = weights.sum(1) / (weights.sum(1) + 1)  # (Q,)
    off = hue_distance(hues[None], wanted[:, 1:])  # (R, Q)
    suits = shares.T[wanted[:, 0].long()] * crowd * (-(off / HUE_WIDTH).square() / 2).exp()  # (R, Q)
    best = suits.topk(min(CODES_PER_REQUEST, len(candidates))).indices
    return candidates[best[:, torch.arange(CODES_PER_REQUEST) % best.shape[1]]]


def requests() -> Tensor:
    """All 10 digits × N_HUES hues, (240, 2): digit, hue in degrees; the hue runs faster."""
    hues = torch.arange(N_HUES) * 360 / N_HUES
    return torch.cartesian_prod(torch.arange(10.0), hues)


def control_on_demand(model: nn.Module, codes: Tensor, train: data.ColoredSet) -> tuple[dict, Tensor, Tensor]:
    """Draws every request from codes found among those of the training images.

    Returns the shares; the picture of each request's first code, (10, N_HUES, 3, 28, 28); and whether it is right,
    bool (10, N_HUES).
    """
    wanted = requests().to(codes)
    found = find_codes(codes, train, wanted)  # (240, 5, D)
    pictures = _in_batches(model.decode, found.flatten(0, 1))
    digits, hues = wanted.repeat_interleave(CODES_PER_REQUEST, 0).unbind(1)
    digit, hue = _right(pictures, digits, hues)
    first = slice(0, None, CODES_PER_REQUEST)
    return (
        _shares("demand", digit, hue),
        pictures[first].unflatten(0, (10, N_HUES)),
        (digit & hue)[first].view(10, N_HUES),
    )


def color_latents(latents: dict[str, slice], codes: Tensor, train: data.ColoredSet) -> list[str]:
    """Names of the latents that carry colour: those that tell more of the hue than of the digit on training images."""
    told = information(latents, codes, train)
    return [name for name in latents if told[name]["mi_hue"] > told[name]["mi_digit"]]


def swapped(latents: dict[str, slice], names: list[str], codes: Tensor, others: Tensor) -> Tensor:
    """Codes (n, D) whose latents of these names come from `others` (n, D)."""
    result = codes.clone()
    for name in names:
        result[:, latents[name]] = others[:, latents[name]]
    return result


def control_by_swap(model: nn.Module, codes: Tensor, names: list[str], test: data.ColoredSet) -> dict[str, float]:
    """Shares of pairs of test images that give one's digit in the other's hue when the latents `names` are swapped.

    Every test image gives the digit once and the hue once, paired at random with a fixed seed.
    """
    partner = torch.randperm(len(codes), generator=torch.Generator().manual_seed(0)).to(codes.device)
    pictures = _in_batches(model.decode, swapped(model.latents, names, codes, codes[partner]))
    return _shares("swap", *_right(pictures, test.digits, test.hues[partner]))


def swap_examples(
    model: nn.Module, codes: Tensor, names: list[str], test: data.ColoredSet
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The first test image of each digit recoloured after the first 8 test images.

    Returns the ten images that give the digit, (10, 3, 28, 28); the eight that give the colour, (8, ...); the decoded
    swaps, (8, 10, ...); and which of them are right, bool (8, 10).
    """
    givers = first_of_each_digit(test.digits, 1)[:, 0]
    colors = torch.arange(8, device=codes.device)
    down, across = colors.repeat_interleave(10), givers.repeat(8)
    pictures = model.decode(swapped(model.latents, names, codes[across], codes[down]))
    digit, hue = _right(pictures, test.digits[across], test.hues[down])
    return (
        data.colorize(test.images[givers], test.colors[givers]),
        data.colorize(test.images[colors], test.colors[colors]),
        pictures.unflatten(0, (8, 10)),
        (digit & hue).view(8, 10),
    )


# --------------------------------------------------------------------------------------------- translation


def color_of(images: Tensor, grey: Tensor) -> Tensor:
    """RGB (B, 3) of the ink of images (B, 3, 28, 28), where `grey` uint8 (B, 28, 28) says how much ink is where.

    The least-squares colour: grey level × colour fits the image best with it.
    """
    ink = grey[:, None] / 255
    return (ink * images).sum((2, 3)) / ink.square().sum((2, 3))


def translation_scores(name: str, outputs: Tensor, grey: Tensor, digits: Tensor, target: Tensor) -> tuple[dict, Tensor]:
    """Scores of images (n, 3, 28, 28) that should show `grey` (n, 28, 28) in the target colours (10, 3), by digit (n,).

    digit: the judge still sees it; color: of the ten target colours, the one nearest to the ink's (RGB, Euclidean) is
    the digit's; both; l1: mean absolute difference to the true target; psnr: of the mean squared difference, in dB
    (None where there is no difference). Also returns which images are right in both, bool (n,).
    """
    digit = digit_of(outputs) == digits
    color = torch.cdist(color_of(outputs, grey), target).argmin(1) == digits
    difference = outputs - data.colorize(grey, target[digits])
    mse = difference.square().mean().item()
    scores = _shares(name, digit, color)
    scores = {key.replace("_hue", "_color"): value for key, value in scores.items()}
    scores[f"{name}_l1"] = difference.abs().mean().item()
    scores[f"{name}_psnr"] = -10 * math.log10(mse) if mse > 0 else None
    for part, right in (("digit", digit), ("color", color)):
        scores[f"{name}_{part}_by_digit"] = [right[digits == d].cpu().double().mean().item() for d in range(10)]
    return scores, digit & color


def color_map(outputs: Tensor, grey: Tensor, digits: Tensor, target: Tensor) -> Tensor:
    """Share of each digit's images that came out nearest to each target colour (10, 3): (10 digits, 10 colours)."""
    nearest = torch.cdist(color_of(outputs, grey), target).argmin(1)
    return torch.stack([torch.bincount(nearest[digits == d], minlength=10) / (digits == d).sum() for d in range(10)])


if __name__ == "__main__":
    main()
