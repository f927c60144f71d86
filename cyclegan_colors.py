"""Colour translation: two generators recolour digits between two colourings without ever seeing a pair.

In domain A each digit wears a colour of its own. In domain B the same ten colours are assigned differently (data.py).
The images of the two domains come from different halves of MNIST, so no digit image exists in both. The discriminator
of a domain separates its real images from translated ones. It sees shape and colour together, so a 3 in another digit's
colour looks fake to it, which pushes the generator towards the right permutation of the ten colours. Digits that look
alike are the difficult part: a generator may exchange the colours of 4s and 9s, and begin to bend one shape into the
other. The cycle loss works against that. The true target of every test image is known, so success is measured exactly.

    python cyclegan_colors.py    # edit the constants below, run again

Result, mean ± standard deviation over five seeds: of the 10,000 test images 100.0 ± 0.0% (A → B) and 100.0 ± 0.0%
(B → A) get the right colour, 99.9 ± 0.1% and 100.0 ± 0.0% exactly, and 99.6 ± 0.0% and 99.6 ± 0.0% keep their digit
(99.6% of the true targets do). 8,000 updates took 37 minutes on one core of an AMD EPYC (Zen 5, bfloat16), torch
2.14.1, and 22 on two; on two of an older one (Zen 3, float32) 6,000 took 78. 99% of the colours were right in both
directions after 1,000 to 1,250. The default constants keep the homework's batch and rate. The faster ones below need a
sixth of the time. docs/results.md has each row in full, other colours, and what happens without penalty.

Papers: LeCun et al., Efficient BackProp, 1998 (inputs that are not all positive); Goodfellow et al., Generative
Adversarial Networks, 2014; He et al., Delving Deep into Rectifiers, 2015 (the discriminators' first weights); Zhu et
al., Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks, 2017; Karras et al., Progressive
Growing of GANs for Improved Quality, Stability, and Variation, 2018 (the averaged generators); Mescheder, Geiger &
Nowozin, Which Training Methods for GANs do actually Converge?, 2018 (the gradient penalty); Karras et al., Analyzing
and Improving the Image Quality of StyleGAN, 2020 (computing it only now and then).
"""

import copy
import functools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(globals().get("__file__", "")).parent))  # also where Python leaves this folder out

import data
import judge
import metrics
import plots
import runs

# What leads to the right permutation of the ten colours, and to exact ones (runs: docs/results.md). The gradient
# penalty on real images keeps the discriminators smooth. Without this penalty, runs with the faster constants
# below found the permutation and lost it again. The cycle loss keeps digits from being bent into others. It also gives
# each generator pairs to learn from: the fakes of the other one, and the real images that they were made from. So what
# is clear in one direction teaches the other, even to tell a dim cyan stroke from a teal one. A heavy cycle loss makes
# colours more exact, but at a low rate, or on clothes (FashionMNIST), it holds the generators in wrong permutations. So
# it is light at first, and a mean squared distance joins it later. Generators learn much sooner from pixels that are
# not all positive. Adam with a short memory of squared gradients gets further at the same rate. Until the rate has
# fallen, the averages are far more exact than the last weights.
INPUT_RANGE = (-2.5, 7.5)  # what the generators take for black and for full brightness; (0.0, 1.0): pixels as they are
HE_WEIGHTS = True  # the discriminators' first weights: True for He et al. 2015; torch's own are 2.4 times smaller
R1_WEIGHT = 0.3  # weight of the penalty, half the mean squared gradient; 0: none
R1_EVERY = 4  # steps from one penalty to the next, which has as many times the weight; more of them save time
BETA1 = 0.5  # Adam's, at first: a shorter memory of gradients than the usual 0.9 finds the permutation sooner
BETA2 = 0.95  # Adam's: a shorter memory of squared gradients than the usual 0.999; at the same rate, steps go further
CYCLE_WEIGHT = 2.0  # weight of the mean L1 distance of an image to its translation there and back; 0: none
REFINE_FROM = 0.35  # share of the run after which beta1 is 0.9, and the next weight counts; 1: never
REFINE_WEIGHT = 40.0  # weight of the mean squared distance of an image to its translation there and back; 0: none
EMA_DECAY = 0.998  # the decay of the averaged generators, which are scored, shown and saved; 0: the last weights

# Training. Each epoch ends with a line of the log and a checkpoint. These values are faster, and were tried on many
# colours: EPOCHS = 8, IMAGES_PER_EPOCH = 16_000, BATCH_SIZE = 32, LEARNING_RATE = 0.002, CYCLE_WEIGHT = 10.0,
# INPUT_RANGE = (0.0, 1.0), REFINE_FROM = 0.3, REFINE_WEIGHT = 0.0.
EPOCHS = 32
IMAGES_PER_EPOCH = 30_000  # from each domain, drawn anew for each epoch; all of a domain's if it has fewer
BATCH_SIZE = 120  # images of each domain
LEARNING_RATE = 0.0003  # Adam's, for all four networks
DECAY_FROM = 0.7  # share of the run after which the rate falls linearly to 0; 1: never
SEED = 0  # seeds the weights, the halves and the order of the images
DEVICE = "auto"  # "auto" takes a CUDA or ROCm GPU if one works, else the CPU; or name it: "cuda", "mps", "cpu"
PRECISION = "auto"  # in training: "auto" is "bfloat16" on a CPU that is fast at it, else "float32"
RESUME = True  # True resumes an unfinished run of the same constants, False always starts over

OUTPUT_DIR = runs.ROOT / "outputs" / "cyclegan_colors"

# Shapes below: B batch.


class Discriminator(nn.Sequential):
    """Images (B, 3, 28, 28) → logit (B, 1) of being real; the loss applies the sigmoid.

    The first weights are He et al.'s (normal, standard deviation √(2 / inputs of a unit), biases 0) or torch's own.
    """

    def __init__(self, he_weights: bool = True):
        super().__init__(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),  # (B, 32, 14, 14)
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),  # (B, 64, 7, 7)
            nn.Flatten(),
            nn.Linear(7 * 7 * 64, 128),
            nn.ReLU(),
            nn.Linear(128, 1),
        )
        for layer in self:
            if he_weights and isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)


class Generator(nn.Sequential):
    """Images (B, 3, 28, 28) of one domain → images of the other, (B, 3, 28, 28), not clamped to [0, 1].

    A pixel depends on the 7 × 7 around it: enough to recolour a digit by its strokes, and to bend them a little. The
    first layer takes pixels stretched from [0, 1] to `input_range`.
    """

    def __init__(self, input_range: tuple[float, float] = (0, 1)):
        super().__init__(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 2, padding=1),  # (B, 64, 29, 29): the next kernel, of size 4, takes the extra pixel back
            nn.ReLU(),
            nn.Conv2d(64, 3, 4, padding=1),  # (B, 3, 28, 28)
        )
        self.register_buffer("input_range", torch.tensor(input_range, dtype=torch.float32))  # saved with the weights

    def forward(self, x: Tensor) -> Tensor:
        black, full = self.input_range
        return super().forward(black + (full - black) * x)


def gradient_penalty(logits: Tensor, x: Tensor) -> Tensor:
    """Mean over the batch of |d logit / d image|²: R1 of Mescheder et al. 2018. Logit i depends only on image i."""
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


def discriminator_loss(discriminator: Discriminator, real: Tensor, fake: Tensor, r1_weight: float) -> Tensor:
    """Mean BCE of real images with 1, plus mean BCE of fake ones with 0, plus r1_weight / 2 × the real ones' penalty.

    Goodfellow et al. 2014; fake images are not penalized, as in R1.
    """
    fake, penalty = fake.detach(), 0
    if r1_weight:
        real = real.detach().requires_grad_()
        on_real, on_fake = discriminator(real).float(), discriminator(fake).float()
        penalty = r1_weight / 2 * gradient_penalty(on_real, real)
    else:
        on_real, on_fake = discriminator(torch.cat([real, fake])).float().chunk(2)  # one pass for both
    return F.softplus(-on_real).mean() + F.softplus(on_fake).mean() + penalty  # BCE of the sigmoid with 1 and with 0


def generator_loss(discriminator: Discriminator, fake: Tensor) -> Tensor:
    """Mean BCE of fake images with 1: the generator's own, non-saturating loss of Goodfellow et al. 2014."""
    return F.softplus(-discriminator(fake).float()).mean()


def load_model(path: Path) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """(a_to_b, b_to_a) from a generators.pt, for your own use: images (B, 3, 28, 28) → the same in [0, 1]."""
    saved, generators = runs.load_torch(path), []
    try:
        for name in ("a_to_b", "b_to_a"):
            generators.append(Generator())
            generators[-1].load_state_dict(saved[name])
    except (KeyError, TypeError, RuntimeError, AttributeError):
        raise SystemExit(f"{path} does not hold the two generators: train them again.") from None
    return tuple(clamped(generator.eval()) for generator in generators)


def clamped(generator: Generator) -> Callable[[Tensor], Tensor]:
    """The generator as it is shown and scored: its output clamped to [0, 1], without gradients."""

    @torch.inference_mode()
    def translate(x: Tensor) -> Tensor:
        return generator(x).clamp(0, 1)

    return translate


@dataclass
class Domain:
    """One of the two domains: its colours, its half of the training images, and what is trained for it."""

    colors: Tensor  # RGB (10, 3), by digit
    train: data.ColoredSet  # its real images
    generator: Generator  # translates images of the other domain into this one
    discriminator: Discriminator  # separates real images of this domain from translated ones
    averaged: Generator  # the same with an exponential moving average of its weights
    generator_optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer
    batch: Tensor | None = None  # its real images in this step, (B, 3, 28, 28)
    fake: Tensor | None = None  # the other domain's, translated into this one

    def parts(self, name: str) -> dict:
        """What a checkpoint saves of this domain, each part under a name of its own."""
        names = ("generator", "discriminator", "averaged", "generator_optimizer", "discriminator_optimizer")
        return {f"{part}_{name}": getattr(self, part) for part in names}


def make_domains(images: Tensor, digits: Tensor, colors: list[Tensor], device: torch.device) -> tuple[Domain, Domain]:
    """A and B, with their first weights. `colors` are theirs, RGB (10, 3); `images` uint8 (n, 28, 28), by digit (n,).

    Unpaired: one half of the images only ever appears in A's colours, the other half in B's. Here the digits choose the
    colours. No network sees them; test digits score each line of the log.
    """
    halves = torch.randperm(len(images))[: len(images) // 2 * 2].chunk(2)  # equal in size; the same in a resumed run
    a_to_b, b_to_a = Generator(INPUT_RANGE), Generator(INPUT_RANGE)
    generators = [b_to_a, a_to_b]  # by the domain they lead into
    discriminators = [Discriminator(HE_WEIGHTS), Discriminator(HE_WEIGHTS)]
    domains = []
    for half, palette, *networks in zip(halves, colors, generators, discriminators, strict=True):
        parts = images[half], digits[half], palette[digits[half]]
        for network in networks:  # channels_last and fused: faster, and the same up to rounding
            network.to(device, memory_format=torch.channels_last)
        averaged = copy.deepcopy(networks[0]).requires_grad_(False)
        adam = functools.partial(torch.optim.Adam, lr=LEARNING_RATE, fused=True)
        optimizers = [adam(network.parameters()) for network in networks]
        train = data.ColoredSet(*(part.to(device) for part in parts))
        domains.append(Domain(palette.to(device), train, *networks, averaged, *optimizers))
    return tuple(domains)


def main() -> dict:
    """Trains, scores and draws. Returns the results, which are also written to metrics.json."""
    with runs.start(OUTPUT_DIR, globals(), data.DOMAINS, schedule=("EPOCHS",)) as run:
        colors = [data.palette("DOMAIN_A", data.DOMAIN_A), data.palette("DOMAIN_B", data.DOMAIN_B)]
        images, digits = data.load(train=True)
        test = [part.to(run.device) for part in data.load(train=False)]  # images, digits
        n = min(IMAGES_PER_EPOCH, len(images) // 2)  # images that an epoch takes from each domain
        run.check_batch_size(BATCH_SIZE, n)
        judge.load(run.device)  # the classifier that scores pictures; trained now if there is none for this dataset

        torch.manual_seed(SEED)
        a, b = domains = make_domains(images, digits, colors, run.device)
        directions = {
            "a_to_b": metrics.Direction(clamped(b.averaged), a.colors, b.colors),
            "b_to_a": metrics.Direction(clamped(a.averaged), b.colors, a.colors),
        }
        n_batches = math.ceil(n / BATCH_SIZE)
        steps = EPOCHS * n_batches
        history = run.resume(**a.parts("a"), **b.parts("b")) or [log_row(directions, *test, run, 0, 0)]
        print_row(history[-1], steps)
        step = history[-1]["step"]
        optimizers = [o for domain in domains for o in (domain.generator_optimizer, domain.discriminator_optimizer)]
        autocast = run.autocast()  # convolutions in bfloat16, where that is faster

        for epoch in range(history[-1]["epoch"] + 1, EPOCHS + 1):
            batches = [torch.randperm(len(d.train))[:n].to(run.device).split(BATCH_SIZE) for d in domains]
            batches = zip(*batches, strict=True)
            for index_a, index_b in tqdm(batches, f"epoch {epoch}/{EPOCHS}", n_batches, leave=False, disable=None):
                a.batch, b.batch = a.train.colored(index_a), b.train.colored(index_b)
                r1_weight = R1_WEIGHT * R1_EVERY if step % R1_EVERY == 0 else 0
                beta1, squared_weight = (0.9, REFINE_WEIGHT) if step >= REFINE_FROM * steps else (BETA1, 0)
                for optimizer in optimizers:
                    optimizer.param_groups[0] |= {"lr": LEARNING_RATE * rate(step, steps), "betas": (beta1, BETA2)}
                losses = []

                # 1. Each discriminator: real images of its domain against translated ones.
                for domain, other in ((a, b), (b, a)):
                    with autocast:
                        domain.fake = domain.generator(other.batch).float()
                        loss = discriminator_loss(domain.discriminator, domain.batch, domain.fake, r1_weight)
                    domain.discriminator_optimizer.zero_grad()
                    loss.backward()
                    domain.discriminator_optimizer.step()
                    losses.append(loss.detach())

                # 2. Both generators: fakes that look real and, translated back, are what they were made from.
                for domain, other in ((a, b), (b, a)):
                    domain.discriminator.requires_grad_(False)  # gradients only pass through
                    with autocast:
                        loss = generator_loss(domain.discriminator, domain.fake)
                        if CYCLE_WEIGHT or squared_weight:  # this trains both
                            difference = other.generator(domain.fake).float() - other.batch
                            loss = loss + CYCLE_WEIGHT * difference.abs().mean()
                            if squared_weight:
                                loss = loss + squared_weight * difference.square().mean()
                    loss.backward()
                    domain.discriminator.requires_grad_(True)
                    losses.append(loss.detach())
                for domain in domains:
                    domain.generator_optimizer.step()
                    domain.generator_optimizer.zero_grad()

                    # 3. The average of the generator's weights. At first it covers about a ninth of those so far.
                    share = max(1 - EMA_DECAY, 9 / (10 + step))
                    with torch.no_grad():
                        for mean, last in zip(domain.averaged.parameters(), domain.generator.parameters(), strict=True):
                            mean.lerp_(last, share)
                run.check_finite(sum(losses), step)
                step += 1
            history.append(log_row(directions, *test, run, epoch, step))
            run.checkpoint(history)
            print_row(history[-1], steps)

        generators = {"a_to_b": b.averaged.state_dict(), "b_to_a": a.averaged.state_dict()}
        runs.save_torch(OUTPUT_DIR / "generators.pt", generators)
        results, examples, maps = metrics.evaluate_translation(directions, *test)
        results["updates_to_99"] = updates_to_99(history)
        figures(directions, results, examples, maps, history)
        run.finish(results, [{key: value for key, value in row.items() if key != "pictures"} for row in history])
    return results


# Same as vae_control.rate.
def rate(step: int, steps: int) -> float:
    """The learning rate as a share of LEARNING_RATE: 1 until DECAY_FROM, then falling linearly to 0."""
    return min(1, (1 - step / steps) / max(1 - DECAY_FROM, 1 / steps))


def log_row(
    directions: dict[str, metrics.Direction], images: Tensor, digits: Tensor, run: runs.Run, epoch: int, step: int
) -> dict:
    """A row of the history: scores of the first 2,000 test images, and pictures.

    The pictures, uint8 (2, 10, 3, 28, 28), are the first test image of each digit as it is translated now.
    """
    row, pictures = {"epoch": epoch, "step": step}, []
    first = metrics.first_of_each_digit(digits, 1)[:, 0]
    for name, direction in directions.items():
        outputs = direction.outputs(images[:2000], digits[:2000])
        scores, _ = metrics.translation_scores(name, outputs, images[:2000], digits[:2000], direction.target)
        row |= {f"{name}_{part}": scores[f"{name}_{part}"] for part in ("digit", "color", "exact")}
        pictures.append(direction.outputs(images[first], digits[first]))
    row["seconds"] = run.seconds()
    return row | {"pictures": torch.stack(pictures).mul(255).round().byte().cpu()}


def print_row(row: dict, steps: int) -> None:
    """A line of the log, of a run of so many steps."""
    print(
        f"{row['step']:{len(str(steps))}d}/{steps} updates",
        *(
            f"{way}: "
            + "  ".join(
                f"{label} {row[f'{way}_{part}']:6.1%}"
                for part, label in (("digit", "digit"), ("color", "colour"), ("exact", "exact"))
            )
            for way in ("a_to_b", "b_to_a")
        ),
        f"{row['seconds'] / 60:4.1f} min",
        sep=" | ",
        flush=True,
    )


def updates_to_99(history: list[dict]) -> int | None:
    """The updates after which 99% of the colours were first right in both directions, by the log; None if never."""
    reached = (row["step"] for row in history if min(row["a_to_b_color"], row["b_to_a_color"]) >= 0.99)
    return next(reached, None)


def figures(
    directions: dict[str, metrics.Direction], results: dict, examples: dict, maps: dict, history: list[dict]
) -> None:
    """Draws all figures from what metrics.evaluate_translation returned."""
    plots.translation_movie(OUTPUT_DIR / "training.gif", examples, history)
    plots.translation_curves(OUTPUT_DIR / "scores.png", history)
    plots.translations(OUTPUT_DIR / "translations.png", examples, results)
    palettes = {name: direction.target for name, direction in directions.items()}
    plots.color_maps(OUTPUT_DIR / "map.png", maps, palettes, {"a_to_b": data.DOMAIN_B, "b_to_a": data.DOMAIN_A})


if __name__ == "__main__":
    runs.command(main)
