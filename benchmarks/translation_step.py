"""A training step of cyclegan_colors.py beside the usual way, with the same networks and losses.

    python -m benchmarks.translation_step

The usual way: Datasets that colour an image with PIL when it is asked for, a DataLoader for each
domain, Adam as it comes, tensors in the usual memory format, and a pass of the discriminator for
the real images, one for the fake ones, and one for the penalty. Milliseconds, means over the steps
(every fourth has the penalty), medians of the repeats.
"""

import functools
import time

import torch
import torch.nn.functional as F
import torchvision
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

import cyclegan_colors
import data
import runs
from benchmarks import timing
from experiments import common

STEPS = 48  # of each repeat; a multiple of R1_EVERY
WARM_UP = 12  # steps that are not counted: what the loaders have fetched in advance is used up
REPEATS = 3
WORKERS = 2  # of each domain


class Domain(Dataset):
    """Half of the images, each coloured by PIL in its digit's colour when it is asked for."""

    def __init__(self, half: int, colors: torch.Tensor):
        self.images, self.digits = (part[half::2] for part in data.load(train=True))
        self.colors = (colors * 255).round().int().tolist()
        self.to_tensor = torchvision.transforms.ToTensor()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> torch.Tensor:
        grey = Image.fromarray(self.images[i].numpy())
        return self.to_tensor(ImageOps.colorize(grey, (0, 0, 0), tuple(self.colors[self.digits[i]])))


def usual_way() -> float:
    """Seconds of a step, the mean of STEPS."""
    size, rate, every = cyclegan_colors.BATCH_SIZE, cyclegan_colors.LEARNING_RATE, cyclegan_colors.R1_EVERY
    domains = Domain(0, data.palette("DOMAIN_A", data.DOMAIN_A)), Domain(1, data.palette("DOMAIN_B", data.DOMAIN_B))
    loaders = [DataLoader(domain, size, shuffle=True, num_workers=WORKERS) for domain in domains]
    generators = [cyclegan_colors.Generator(cyclegan_colors.INPUT_RANGE) for _ in range(2)]
    discriminators = [cyclegan_colors.Discriminator() for _ in range(2)]
    betas = cyclegan_colors.BETA1, cyclegan_colors.BETA2
    g_optimizers, d_optimizers = (
        [torch.optim.Adam(network.parameters(), rate, betas=betas) for network in networks]
        for networks in (generators, discriminators)
    )
    bce, ones, zeros = F.binary_cross_entropy_with_logits, torch.ones(size, 1), torch.zeros(size, 1)
    for step, (real_a, real_b) in enumerate(zip(*loaders, strict=True)):
        fakes, ways = [], list(enumerate(((real_a, real_b), (real_b, real_a))))
        for i, (real, source) in ways:
            fakes.append(generators[i](source))
            loss = bce(discriminators[i](real), ones) + bce(discriminators[i](fakes[i].detach()), zeros)
            if step % every == 0:
                x = real.clone().requires_grad_()
                penalty = cyclegan_colors.gradient_penalty(discriminators[i](x), x)
                loss = loss + every * cyclegan_colors.R1_WEIGHT / 2 * penalty
            d_optimizers[i].zero_grad()
            loss.backward()
            d_optimizers[i].step()
            loss.item()
        loss = 0
        for i, (_, source) in ways:
            loss = loss + bce(discriminators[i](fakes[i]), ones)
            if cyclegan_colors.CYCLE_WEIGHT:
                loss = loss + cyclegan_colors.CYCLE_WEIGHT * F.l1_loss(generators[1 - i](fakes[i]), source)
        for optimizer in g_optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in g_optimizers:
            optimizer.step()
        loss.item()
        if step + 1 == WARM_UP:
            started = time.perf_counter()
        if step + 1 == WARM_UP + STEPS:
            return (time.perf_counter() - started) / STEPS


def script() -> float:
    return timing.step_seconds(cyclegan_colors, STEPS, DEVICE="cpu")


def main() -> None:
    versions = runs.versions(torch.device("cpu"), runs.constants(vars(cyclegan_colors), data.DOMAINS))
    print(", ".join(f"{name} {value}" for name, value in versions.items()))
    ways = {"script": script, "usual way": usual_way}
    functions = {key: functools.partial(timing.apart, way) for key, way in ways.items()}
    values = timing.repeated(functions, REPEATS, "cyclegan_colors")
    head = ["", "script, ms", "usual way, ms", "times as long"]
    print(f"\n{common.markdown([head, timing.row('cyclegan_colors', values, 'script')])}")


if __name__ == "__main__":
    runs.command(main)
