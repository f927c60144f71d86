"""Colour translation: two generators recolour digits between two colourings without ever seeing a pair.

In domain A each digit wears a colour of its own; in domain B the same ten colours are assigned differently (data.py).
The images of the two domains come from different halves of MNIST, so no digit image exists in both. A discriminator
for each domain tells real images from translated ones, and so leads each generator to the right permutation of the ten
colours: it sees shape and colour together, and a 3 in another digit's colour is a fake. Digits that look alike are the
hard part: a generator may exchange the colours of 4s and 9s and begin to bend the ones into the others. The cycle loss
speaks against that. The true target of every test image is known, so success is measured exactly.

    python cyclegan_colors.py    # edit the constants below, run again

Result, seed 0: of the 10,000 test images 100.0% (A → B) and 100.0% (B → A) get the right colour, 99.6% and 99.5% keep
their digit (the true targets: 99.6%). 3,000 updates took 7.6 minutes on 2 cores of an AMD EPYC in bfloat16, torch
2.14.1; 99% of the colours were right both ways after 1,500. Other seeds, a faster set of constants, other colours, and
what happens without penalty or cycle loss: README.md.

Papers: Goodfellow et al., Generative Adversarial Networks, 2014; He et al., Delving Deep into Rectifiers, 2015 (the
discriminators' first weights); Zhu et al., Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial
Networks, 2017; Mescheder, Geiger & Nowozin, Which Training Methods for GANs do actually Converge?, 2018 (the gradient
penalty); Karras et al., Analyzing and Improving the Image Quality of StyleGAN, 2020 (computing it only now and then).
"""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import data
import metrics
import plots
import runs

# What leads to the right permutation of the ten colours (README.md has the runs). The gradient penalty on real images
# keeps the discriminators smooth, so that they give a direction out of a wrong one. The cycle loss keeps digits from
# being bent into others, and lets a generator that has exchanged two colours learn from the other that has not; a wrong
# permutation and its inverse it cannot see. A weight of 0 turns either off.
HE_WEIGHTS = True  # first weights of the discriminators after He et al. 2015; False: torch's own, 2.4 times smaller
R1_WEIGHT = 0.3  # of the penalty, half the mean squared gradient
R1_EVERY = 4  # steps: the penalty is computed on one in so many, with so many times the weight, to save time
BETA1 = 0.5  # of Adam: a shorter memory than the usual 0.9 damps the chase of generator and discriminator
CYCLE_WEIGHT = 2.0  # of the mean L1 distance of an image to itself there and back; a large one may slow the search

# Training. Each epoch ends with a line of the log and a checkpoint. Five times faster, and not as steady:
# EPOCHS = 10, IMAGES_PER_EPOCH = 4000, BATCH_SIZE = 8, LEARNING_RATE = 0.002, DECAY_FROM = 0.6.
EPOCHS = 12
IMAGES_PER_EPOCH = 30_000  # of each domain, drawn anew for each epoch; all of a domain's if it has fewer
BATCH_SIZE = 120  # images of each domain
LEARNING_RATE = 0.0003  # of all four networks
DECAY_FROM = 0.8  # share of the run after which the rate falls linearly to 0; 1: never
SEED = 0  # of weights, halves and order of images
DEVICE = "auto"  # "auto" takes CUDA, then Apple's MPS, then the CPU; or name one: "cuda", "mps", "cpu"
PRECISION = "auto"  # of the networks in training: "auto" is "bfloat16" on a CPU that is fast at it, else "float32"
RESUME = True  # go on with an unfinished run of the same constants; False: always start afresh

constants_of_data = ("DATASET", "DOMAIN_A", "DOMAIN_B")  # data.py's, recorded among the constants of a run
OUTPUT_DIR = Path(__file__).parent / "outputs" / "cyclegan_colors"

# Shapes below: B batch.


class Discriminator(nn.Sequential):
    """Images (B, 3, 28, 28) → logit (B, 1) of being real; the sigmoid is in the loss."""

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
            if HE_WEIGHTS and isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)


class Generator(nn.Sequential):
    """Images (B, 3, 28, 28) of one domain → images of the other, (B, 3, 28, 28), not confined to [0, 1].

    A pixel is made from the 7 × 7 around it: enough to recolour a digit by its strokes, and to bend them a little.
    """

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 2, padding=1),  # (B, 64, 29, 29); the even sizes, 2 and then 4, cancel each other
            nn.ReLU(),
            nn.Conv2d(64, 3, 4, padding=1),  # (B, 3, 28, 28)
        )


def gradient_penalty(logits: Tensor, x: Tensor) -> Tensor:
    """Mean over the batch of |d logit / d image|²: R1 of Mescheder et al. 2018. (Logit i sees image i alone.)"""
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


def discriminator_loss(discriminator: Discriminator, real: Tensor, fake: Tensor, r1_weight: float) -> Tensor:
    """BCE of real images as 1 plus BCE of fake ones as 0, each a mean; plus r1_weight / 2 times the real ones' penalty.

    Fake images bear no penalty, as in R1.
    """
    fake, penalty = fake.detach(), 0
    if r1_weight:
        real = real.detach().requires_grad_()
        on_real, on_fake = discriminator(real).float(), discriminator(fake).float()
        penalty = r1_weight / 2 * gradient_penalty(on_real, real)
    else:
        on_real, on_fake = discriminator(torch.cat([real, fake])).float().chunk(2)  # one pass for both
    return F.softplus(-on_real).mean() + F.softplus(on_fake).mean() + penalty  # BCE of the sigmoid with 1 and with 0


def load_model(path: Path) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """(a_to_b, b_to_a) from a generators.pt, for your own use: images (B, 3, 28, 28) → the same in [0, 1]."""
    saved = runs.load_torch(path)
    try:
        return tuple(clamped(load_generator(saved[name])) for name in ("a_to_b", "b_to_a"))
    except (KeyError, TypeError, RuntimeError, AttributeError):
        raise SystemExit(f"{path} does not hold the two generators: train them again.") from None


def load_generator(weights: dict) -> Generator:
    generator = Generator()
    generator.load_state_dict(weights)
    return generator.eval()


def clamped(generator: Generator) -> Callable[[Tensor], Tensor]:
    """The generator as it is shown and scored: its output confined to [0, 1], without gradients."""

    @torch.inference_mode()
    def translate(x: Tensor) -> Tensor:
        return generator(x).clamp(0, 1)

    return translate


def main() -> dict:
    """Trains, scores and draws; returns the results that are written to metrics.json."""
    started = time.perf_counter()
    constants = runs.constants(globals())
    colors_a, colors_b = data.palette("DOMAIN_A", data.DOMAIN_A), data.palette("DOMAIN_B", data.DOMAIN_B)
    device = runs.begin(OUTPUT_DIR, constants)
    fast = runs.autocast(device, PRECISION)  # a context: convolutions in bfloat16, where that is faster
    colors_a, colors_b = colors_a.to(device), colors_b.to(device)
    images, digits = (t.to(device) for t in data.load(train=True))
    test_images, test_digits = (t.to(device) for t in data.load(train=False))
    runs.check_batch_size(BATCH_SIZE, min(IMAGES_PER_EPOCH, len(images) // 2))
    metrics.judge(device)  # trained now, if it has to be

    # Unpaired: one half of the images is only ever seen in A's colours, the other in B's. The digits colour the data
    # and are not looked at again before the scores.
    torch.manual_seed(SEED)
    half_a, half_b = torch.randperm(len(images)).to(device)[: len(images) // 2 * 2].chunk(2)  # of equal size
    train_a, train_b = (images[half_a], colors_a[digits[half_a]]), (images[half_b], colors_b[digits[half_b]])
    del images, digits

    def network(cls: type) -> tuple[nn.Module, torch.optim.Optimizer]:
        # channels_last and fused: faster, and the same up to rounding
        module = cls().to(device, memory_format=torch.channels_last)
        return module, torch.optim.Adam(module.parameters(), LEARNING_RATE, betas=(BETA1, 0.999), fused=True)

    a_to_b, a_to_b_optimizer = network(Generator)
    b_to_a, b_to_a_optimizer = network(Generator)
    discriminator_a, discriminator_a_optimizer = network(Discriminator)
    discriminator_b, discriminator_b_optimizer = network(Discriminator)
    optimizers = a_to_b_optimizer, b_to_a_optimizer, discriminator_a_optimizer, discriminator_b_optimizer

    directions = {"a_to_b": (a_to_b, colors_a, colors_b), "b_to_a": (b_to_a, colors_b, colors_a)}

    def translate(name: str, grey: Tensor, d: Tensor) -> Tensor:
        """Translations (n, 3, 28, 28) of the images `grey` (n, 28, 28) of digits d (n,) in the source's colours."""
        generator, source, _ = directions[name]
        outputs = torch.empty((len(d), 3, 28, 28), device=device, memory_format=torch.channels_last)
        for part in torch.arange(len(d), device=device).split(50):  # what a cache holds: faster than all at once
            outputs[part] = clamped(generator)(data.colorize(grey[part], source[d[part]]))
        return outputs

    parts = {
        "a_to_b": a_to_b,
        "b_to_a": b_to_a,
        "discriminator_a": discriminator_a,
        "discriminator_b": discriminator_b,
    } | {f"optimizer_{i}": optimizer for i, optimizer in enumerate(optimizers)}
    shown = metrics.first_of_each_digit(test_digits, 4).T  # (4, 10)
    n = min(IMAGES_PER_EPOCH, len(half_a))
    n_batches = math.ceil(n / BATCH_SIZE)
    epoch, step, steps, last_loss = 0, 0, EPOCHS * n_batches, math.nan

    def log() -> None:  # to be called once there is a history
        """A row of scores for the history, with the first test image of each digit as it is translated now."""
        row, pictures = {"epoch": epoch, "step": step}, []
        for name, (_, _, target) in directions.items():
            outputs = translate(name, test_images[:2000], test_digits[:2000])
            scores, _ = metrics.translation_scores(name, outputs, test_images[:2000], test_digits[:2000], target)
            row |= {f"{name}_{part}": scores[f"{name}_{part}"] for part in ("digit", "color", "both")}
            pictures.append(translate(name, test_images[shown[0]], test_digits[shown[0]]))
        row["seconds"] = time.perf_counter() - started
        print(
            f"{step:{len(str(steps))}d}/{steps} updates",
            *(f"{name}: digit {row[f'{name}_digit']:6.1%}  colour {row[f'{name}_color']:6.1%}" for name in directions),
            f"{row['seconds'] / 60:4.1f} min",
            sep=" | ",
            flush=True,
        )
        history.append(row | {"pictures": torch.stack(pictures).mul(255).round().byte().cpu()})  # (2, 10, 3, 28, 28)

    history = runs.resume(OUTPUT_DIR, constants, **parts)
    if history:
        epoch, step = history[-1]["epoch"], history[-1]["step"]
        started -= history[-1]["seconds"]
    else:
        log()

    while epoch < EPOCHS:
        epoch += 1
        batches_a, batches_b = (torch.randperm(len(half_a))[:n].to(device).split(BATCH_SIZE) for _ in range(2))
        for index_a, index_b in tqdm(
            zip(batches_a, batches_b, strict=True), f"epoch {epoch}/{EPOCHS}", n_batches, leave=False, disable=None
        ):
            # Share of the rate that is left: above 1 until DECAY_FROM, then down to 0.
            left = (1 - step / steps) / max(1 - DECAY_FROM, 1 / steps)  # 1 / steps: for a DECAY_FROM of 1
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1, left)
            r1_weight = R1_WEIGHT * R1_EVERY if step % R1_EVERY == 0 else 0
            real_a = data.colorize(train_a[0][index_a], train_a[1][index_a])  # (B, 3, 28, 28)
            real_b = data.colorize(train_b[0][index_b], train_b[1][index_b])
            losses = []
            # In turn for A and for B: the discriminator of the domain, then the generator that leads into it.
            for real, source, to_target, to_source, discriminator, d_optimizer, g_optimizer in (
                (real_a, real_b, b_to_a, a_to_b, discriminator_a, discriminator_a_optimizer, b_to_a_optimizer),
                (real_b, real_a, a_to_b, b_to_a, discriminator_b, discriminator_b_optimizer, a_to_b_optimizer),
            ):
                with fast:
                    fake = to_target(source).float()
                    loss_d = discriminator_loss(discriminator, real, fake, r1_weight)
                d_optimizer.zero_grad()
                loss_d.backward()
                d_optimizer.step()

                # The generator's step changes neither of these: in the cycle, the way back is not trained.
                for frozen in (discriminator, to_source):
                    frozen.requires_grad_(False)
                with fast:
                    loss_g = F.softplus(-discriminator(fake).float()).mean()  # BCE of the fakes with 1
                    if CYCLE_WEIGHT:  # led back by the other generator, the fakes should be what they were made from
                        loss_g = loss_g + CYCLE_WEIGHT * (to_source(fake).float() - source).abs().mean()
                g_optimizer.zero_grad()
                loss_g.backward()
                g_optimizer.step()
                for frozen in (discriminator, to_source):
                    frozen.requires_grad_(True)
                losses += [loss_d.item(), loss_g.item()]

            runs.check_finite(sum(losses), epoch, step, last_loss)
            last_loss = sum(losses)
            step += 1
        log()
        runs.checkpoint(OUTPUT_DIR, constants, history, **parts)

    runs.give_memory_back()  # scores need larger blocks than training steps
    results, rows, maps = {}, {}, {}
    for name, (_, source, target) in directions.items():
        x = translate(name, test_images, test_digits)
        scores, right = metrics.translation_scores(name, x, test_images, test_digits, target)
        results |= scores
        maps[name] = metrics.color_map(x, test_images, test_digits, target)
        pictures = [x[shown]]
        for kind, colors in (("identity", source), ("oracle", target)):
            x = data.colorize(test_images, colors[test_digits])  # 94 MB, in place of the images before
            results |= metrics.translation_scores(f"{kind}_{name}", x, test_images, test_digits, target)[0]
            pictures.append(x[shown])
        translations, originals, targets = pictures
        rows[name] = originals, translations, targets, right[shown]
    reached = (row for row in history if min(row[f"{name}_color"] for name in directions) >= 0.99)  # of 2,000 images
    results["updates_to_99"] = next((row["step"] for row in reached), None)
    weights = {name: generator.state_dict() for name, (generator, _, _) in directions.items()}
    runs.save_torch(OUTPUT_DIR / "generators.pt", weights)

    plots.translation_movie(OUTPUT_DIR / "training.gif", rows, history)
    history = [{key: value for key, value in row.items() if key != "pictures"} for row in history]
    plots.translation_curves(OUTPUT_DIR / "scores.png", history)
    plots.translations(OUTPUT_DIR / "translations.png", rows, results)
    palettes = {"a_to_b": colors_b, "b_to_a": colors_a}
    plots.color_maps(OUTPUT_DIR / "map.png", maps, palettes, {"a_to_b": data.DOMAIN_B, "b_to_a": data.DOMAIN_A})
    runs.finish(OUTPUT_DIR, constants, time.perf_counter() - started, results, history)
    return results


if __name__ == "__main__":
    main()
