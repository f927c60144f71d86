"""Colour translation: two generators find a permutation of ten colours, without seeing a pair.

In domain A each digit wears a colour of its own. In domain B the same ten colours are assigned
differently (data.py). The generators have to find which colour of B belongs to which of A. No pair
is given: which of the 10! = 3.6 million permutations is right follows only from which shapes wear
which colours. In the end they go by colour alone: a digit in another digit's colour comes out in
that colour's partner. The images of the two domains come from different halves of MNIST, so no
digit image exists in both. The discriminator of a domain separates its real images from translated
ones. It sees shape and colour together, so a 3 in another digit's colour looks fake to it. The true
target of every test image is known, so success can be measured.

    python cyclegan_colors.py    # edit the constants below, run again

Result, mean ± standard deviation over five seeds: of the 10,000 test images 100.0 ± 0.0% (A → B)
and 100.0 ± 0.0% (B → A) get the right colour, 99.8 ± 0.0% and 99.9 ± 0.0% exactly, and 99.6 ± 0.0%
and 99.6 ± 0.0% keep their digit (99.6% of the true targets do). The worst digit of any seed is
exact in 98.7% of its images. 99% of the colours were right in both directions after 400 to 1,200 of
the 3,750 updates. The fastest run took 9 minutes on one core of a server of 2022.
docs/results.md has other colours, FashionMNIST, and what happens without the penalty.

Papers: Goodfellow et al., Generative Adversarial Networks, 2014; He et al., Delving Deep into
Rectifiers, 2015 (the discriminators' first weights); Zhu et al., Unpaired Image-to-Image
Translation using Cycle-Consistent Adversarial Networks, 2017; Karras et al., Progressive Growing of
GANs for Improved Quality, Stability, and Variation, 2018 (the averaged generators); Mescheder,
Geiger & Nowozin, Which Training Methods for GANs do actually Converge?, 2018 (the gradient
penalty); Karras et al., Analyzing and Improving the Image Quality of StyleGAN, 2020 (lazy
regularization: the penalty in some steps only).
"""

import copy
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import data
import judge
import metrics
import plots
import runs

# Losses. The penalty keeps the right permutation once found. The cycle loss makes colours exact; it
# is light at first, because a heavy one holds wrong permutations that undo each other.
R1_WEIGHT = 0.3  # γ of R1, γ / 2 · |discriminator's gradient at real images|² (homework: 0)
R1_EVERY = 4  # the penalty is in one of so many steps, times as many; higher is faster
CYCLE_WEIGHT = 20.0  # error of images there and back; grows from 0 until DECAY_FROM (homework: 0)

# Adam, for all four networks.
LEARNING_RATE = 0.003  # until DECAY_FROM (homework: 0.0003)
BETA1 = 0.5  # a short average of gradients finds the permutation sooner (homework: 0.9)
BETA2 = 0.95  # so does a short one of squared gradients, by larger steps (homework: 0.999)
DECAY_FROM = 0.4  # share of the steps after which the rate falls linearly to 0 (homework: 1, never)
EMA_DECAY = 0.998  # of the generators' average, which is scored; see step 3 (homework: 0, last weights)

# The run.
EPOCHS = 3  # over each domain's half of the images (homework: 150)
BATCH_SIZE = 24  # images of each domain (homework: 120)
LOG_EVERY = 200  # updates between lines of the log; also after 50, 100 and each epoch
SEED = 0  # seeds the weights, the halves and the order of the images
DEVICE = "auto"  # a CUDA or ROCm GPU if there is one, else the CPU; or "cuda", "mps", "cpu"
PRECISION = "auto"  # in training: "auto" is "bfloat16" on a CPU that is fast at it, else "float32"
RESUME = True  # go on with an unfinished run of the same code and constants; False: start over

OUTPUT_DIR = runs.ROOT / "outputs" / "cyclegan_colors"

# Shapes below: B is the batch size.


class Discriminator(nn.Sequential):
    """Images (B, 3, 28, 28) → logit (B, 1) of being real; the loss applies the sigmoid.

    The first weights are He et al.'s: normal, standard deviation √(2 / inputs of a unit), biases 0.
    They are 2.4 times torch's (which the homework had).
    """

    def __init__(self):
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
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)


class Generator(nn.Sequential):
    """Images (B, 3, 28, 28) of one domain → of the other, (B, 3, 28, 28), not clamped to [0, 1].

    An output pixel sees 7 × 7 input pixels, a piece of a stroke and not the digit: enough to
    recolour strokes, and to bend them a little.
    """

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 2, padding=1),  # (B, 64, 29, 29): kernel 2 adds a pixel, kernel 4 takes it away
            nn.ReLU(),
            nn.Conv2d(64, 3, 4, padding=1),  # (B, 3, 28, 28)
        )


def gradient_penalty(logits: Tensor, x: Tensor) -> Tensor:
    """R1, Mescheder et al. 2018: mean squared norm of a logit's gradient with respect to its image.

    The logits may be summed first, as none depends on another image.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


def discriminator_loss(discriminator: Discriminator, real: Tensor, fake: Tensor, r1_weight: float) -> Tensor:
    """Mean BCE of real images with 1 and of fake ones with 0, plus r1_weight / 2 × R1 penalty.

    Goodfellow et al. 2014. The penalty is on real images only, as in R1.
    """
    real, fake = real.detach().requires_grad_(r1_weight > 0), fake.detach()
    on_real, on_fake = discriminator(real).float(), discriminator(fake).float()
    loss = F.softplus(-on_real).mean() + F.softplus(on_fake).mean()
    return loss + r1_weight / 2 * gradient_penalty(on_real, real) if r1_weight else loss


def generator_loss(discriminator: Discriminator, fake: Tensor) -> Tensor:
    """Mean BCE of fake images with 1: the non-saturating loss of Goodfellow et al. 2014."""
    return F.softplus(-discriminator(fake).float()).mean()


def cycle_loss(back: Generator, fake: Tensor, original: Tensor) -> Tensor:
    """Mean absolute difference between originals and their translations there and `back`.

    Zhu et al. 2017. It trains both generators.
    """
    return F.l1_loss(back(fake).float(), original)


def load_model(path: Path) -> tuple[nn.Module, nn.Module]:
    """(a_to_b, b_to_a) from a generators.pt: frozen, (B, 3, 28, 28) → the same in [0, 1]."""
    saved, generators = runs.load_torch(path), []
    try:
        for name in ("a_to_b", "b_to_a"):
            generators.append(Generator())
            generators[-1].load_state_dict(saved[name])
    except (KeyError, TypeError, RuntimeError, AttributeError):
        raise SystemExit(f"{path} does not hold the two generators: train them again.") from None
    return tuple(clamped(generator).float().cpu().requires_grad_(False).eval() for generator in generators)


def clamped(generator: Generator) -> nn.Module:
    """The generator as it is shown and scored: its output clamped to [0, 1]."""
    return nn.Sequential(generator, nn.Hardtanh(0, 1))


def halves(images: Tensor, digits: Tensor, colors: list[Tensor], device: torch.device) -> list[data.ColoredSet]:
    """Splits images uint8 (n, 28, 28) at random in two, and paints each half by digit (n,).

    Unpaired: one half only ever appears in A's colours RGB (10, 3), the other in B's. The networks
    never see the digits.
    """
    parts = torch.randperm(len(images))[: len(images) // 2 * 2].chunk(2)  # equal in size
    sets = [(images[part], digits[part], palette[digits[part]]) for part, palette in zip(parts, colors, strict=True)]
    return [data.ColoredSet(*(tensor.to(device) for tensor in tensors)) for tensors in sets]


def main() -> dict:
    """Trains, scores and draws. Returns the results, which are also written to metrics.json."""
    with runs.start(OUTPUT_DIR, globals(), data.DOMAINS) as run:
        colors = [data.palette("DOMAIN_A", data.DOMAIN_A), data.palette("DOMAIN_B", data.DOMAIN_B)]
        (images, digits), test = data.load(train=True), data.load(train=False)
        data.check(images, digits), data.check(*test)
        test = [part.to(run.device) for part in test]  # images, digits
        run.code |= {"judge": judge.fingerprint(judge.load(run.device)), "images": len(images)}

        torch.manual_seed(SEED)
        train_a, train_b = halves(images, digits, colors, run.device)
        to_b, to_a, discriminator_a, discriminator_b = Generator(), Generator(), Discriminator(), Discriminator()
        generators = nn.ModuleDict({"a_to_b": to_b, "b_to_a": to_a})
        discriminators = nn.ModuleDict({"a": discriminator_a, "b": discriminator_b})
        adams = {}
        for name, networks in (("generators", generators), ("discriminators", discriminators)):
            networks.to(run.device, memory_format=torch.channels_last)  # faster, as is fused
            adams[f"{name}_adam"] = torch.optim.Adam(networks.parameters(), betas=(BETA1, BETA2), fused=True)
        averaged = copy.deepcopy(generators).requires_grad_(False)
        color_a, color_b = (color.to(run.device) for color in colors)
        directions = {
            "a_to_b": metrics.Direction(clamped(averaged["a_to_b"]), color_a, color_b),
            "b_to_a": metrics.Direction(clamped(averaged["b_to_a"]), color_b, color_a),
        }
        history = run.resume(generators=generators, discriminators=discriminators, averaged=averaged, **adams)
        if not history:
            history = [{"epoch": 0, "step": 0, "seconds": run.seconds(), **metrics.translation_row(directions, *test)}]
        step, steps = history[-1]["step"], EPOCHS * math.ceil(len(train_a) / BATCH_SIZE)
        metrics.print_translation(history[-1], steps)
        autocast = run.autocast()  # convolutions and linear layers in bfloat16, where that is faster

        for epoch in range(history[-1]["epoch"] + 1, EPOCHS + 1):
            orders = [torch.randperm(len(train)).to(run.device).split(BATCH_SIZE) for train in (train_a, train_b)]
            batches, losses = list(zip(*orders, strict=True)), []
            for index_a, index_b in tqdm(batches, f"epoch {epoch}/{EPOCHS}", leave=False, disable=None):
                real_a, real_b = train_a.colored(index_a), train_b.colored(index_b)
                for adam in adams.values():
                    adam.param_groups[0]["lr"] = LEARNING_RATE * rate(step, steps, DECAY_FROM)

                # 1. Each discriminator: real images of its domain against translated ones, which
                # are detached there, and used again in 2.
                with autocast:
                    fake_a, fake_b = to_a(real_b).float(), to_b(real_a).float()
                    r1_weight = R1_WEIGHT * R1_EVERY * (step % R1_EVERY == 0)
                    loss = discriminator_loss(discriminator_a, real_a, fake_a, r1_weight)
                    loss = loss + discriminator_loss(discriminator_b, real_b, fake_b, r1_weight)
                update(adams["discriminators_adam"], loss)
                losses.append(loss.detach())

                # 2. Both generators: fakes that look real and translate back to their originals.
                discriminators.requires_grad_(False)  # gradients only pass through
                with autocast:
                    loss = generator_loss(discriminator_a, fake_a) + generator_loss(discriminator_b, fake_b)
                    if CYCLE_WEIGHT:
                        there_and_back = cycle_loss(to_a, fake_b, real_a) + cycle_loss(to_b, fake_a, real_b)
                        loss = loss + CYCLE_WEIGHT * growth(step, steps, DECAY_FROM) * there_and_back
                update(adams["generators_adam"], loss)
                discriminators.requires_grad_(True)
                losses.append(loss.detach())

                # 3. Average the generators over about the last ninth of the steps, or over the last
                # 1 / (1 - EMA_DECAY) if those are fewer: with 0.998, after 4,490 steps.
                for mean, last in zip(averaged.parameters(), generators.parameters(), strict=True):
                    mean.lerp_(last.detach(), max(1 - EMA_DECAY, 9 / (10 + step)))
                step += 1
                if step in (50, 100) or 0 in (step % LOG_EVERY, step % len(batches)):
                    loss = torch.stack(losses).mean().item()
                    row = {"epoch": epoch, "step": step, "seconds": run.seconds(), "loss": loss}
                    history.append(row | metrics.translation_row(directions, *test))
                    metrics.print_translation(history[-1], steps)
                    losses.clear()
            run.checkpoint(history)  # with the state of what resume() was given

        run.end_training()
        runs.save_torch(OUTPUT_DIR / "generators.pt", {name: runs.weights(net) for name, net in averaged.items()})
        results, examples, maps = metrics.evaluate_translation(directions, *test)
        results["updates_to_99"] = updates_to_99(history)
        figures(directions, results, examples, maps, history)
        rows = [{name: value for name, value in row.items() if name not in ("pictures", "right")} for row in history]
        return run.finish(results, rows)


def update(adam: torch.optim.Adam, loss: Tensor) -> None:
    """One step of Adam down this loss."""
    adam.zero_grad()
    loss.backward()
    adam.step()


def rate(step: int, steps: int, decay_from: float) -> float:
    """The learning rate as a share of the first: 1 until `decay_from`, then linear to 0."""
    return min(1, (1 - step / steps) / max(1 - decay_from, 1 / steps))


def growth(step: int, steps: int, decay_from: float) -> float:
    """The cycle loss's weight as a share of the full one: linear from 0, 1 from `decay_from` on."""
    return min(1, step / steps / max(decay_from, 1 / steps))


def updates_to_99(history: list[dict]) -> int | None:
    """Updates after which 99% of colours were first right both ways, by the log; None if never."""
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
