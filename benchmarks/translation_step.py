"""A training step of cyclegan_colors.py beside its floor, and beside the usual way.

    python -m benchmarks.translation_step

The floor: the convolutions and matrix products of forward and backward, in the script's dtype and
memory format, then Adam's pass over the weights of all four networks. The usual way: Datasets that
colour an image with PIL when it is asked for, a DataLoader for each domain, float32, Adam as it
comes, tensors in the usual memory format, the same networks and losses. Milliseconds, means over
the steps (every fourth has the penalty), medians of the repeats, in each a new process for each.
"""

import functools
import time

import torch
import torch.nn.functional as F
import torchvision
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import cyclegan_colors
import data
import runs
from benchmarks import timing
from experiments import common

STEPS = 36  # of each repeat: a multiple of R1_EVERY, and over before the first line of the log
WARM_UP = 12  # steps that are not counted: what the loaders have fetched in advance is used up
REPEATS = 3
WORKERS = 2  # of each domain


class Domain(Dataset):
    """Half of the images, each coloured by PIL in its digit's colour when it is asked for."""

    def __init__(self, half: int, colors: Tensor):
        self.images, self.digits = (part[half::2] for part in data.load(train=True))
        self.colors = (colors * 255).round().int().tolist()
        self.to_tensor = torchvision.transforms.ToTensor()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        grey = Image.fromarray(self.images[i].numpy())
        return self.to_tensor(ImageOps.colorize(grey, (0, 0, 0), tuple(self.colors[self.digits[i]])))


def usual_way() -> dict[str, float]:
    """Seconds of a step, the mean of STEPS."""
    size, rate, every = cyclegan_colors.BATCH_SIZE, cyclegan_colors.LEARNING_RATE, cyclegan_colors.R1_EVERY
    domains = Domain(0, data.palette("DOMAIN_A", data.DOMAIN_A)), Domain(1, data.palette("DOMAIN_B", data.DOMAIN_B))
    loaders = [DataLoader(domain, size, shuffle=True, num_workers=WORKERS) for domain in domains]
    generators, discriminators = networks()
    betas = cyclegan_colors.BETA1, cyclegan_colors.BETA2
    adams = [torch.optim.Adam(part.parameters(), rate, betas) for part in (discriminators, generators)]
    bce, ones, zeros = F.binary_cross_entropy_with_logits, torch.ones(size, 1), torch.zeros(size, 1)
    for step, (real_a, real_b) in enumerate(zip(*loaders, strict=True)):
        fakes, ways, loss = [], list(enumerate(((real_a, real_b), (real_b, real_a)))), 0
        for i, (real, source) in ways:
            fakes.append(generators[i](source))
            loss = loss + bce(discriminators[i](real), ones) + bce(discriminators[i](fakes[i].detach()), zeros)
            if step % every == 0:
                x = real.clone().requires_grad_()
                penalty = cyclegan_colors.gradient_penalty(discriminators[i](x), x)
                loss = loss + every * cyclegan_colors.R1_WEIGHT / 2 * penalty
        cyclegan_colors.update(adams[0], loss)
        loss.item()
        loss = 0
        for i, (_, source) in ways:
            loss = loss + bce(discriminators[i](fakes[i]), ones)
            loss = loss + cyclegan_colors.CYCLE_WEIGHT * F.l1_loss(generators[1 - i](fakes[i]), source)
        cyclegan_colors.update(adams[1], loss)
        loss.item()
        if step + 1 == WARM_UP:
            started = time.perf_counter()
        if step + 1 == WARM_UP + STEPS:
            return {"step": (time.perf_counter() - started) / STEPS}


def networks() -> tuple[nn.ModuleList, nn.ModuleList]:
    """Two generators and two discriminators."""
    classes = cyclegan_colors.Generator, cyclegan_colors.Discriminator
    return tuple(nn.ModuleList([cls(), cls()]) for cls in classes)


def script() -> dict[str, float]:
    """Seconds of a step."""
    return {"step": timing.step_seconds(cyclegan_colors, STEPS, DEVICE="cpu")}


def floor() -> dict[str, float]:
    """Seconds of a step's convolutions and products, and of Adam after them.

    In a step each generator translates its domain's images and then those of the other generator,
    and each discriminator sees real images, fake ones and, for the generators, fake ones again.
    """
    runs.keep_freed_memory(True)  # as the script does
    parts = [part.to(memory_format=torch.channels_last) for part in networks()]
    adams = [torch.optim.Adam(part.parameters(), fused=True) for part in parts]
    for parameter in (p for part in parts for p in part.parameters()):
        parameter.grad = torch.randn_like(parameter)
    generator, discriminator = (layers_of(part[0]) for part in parts)

    def products(step: int) -> None:
        for _ in "ab":
            for to_input, weights in ((False, True), (True, True)):  # a translation, and back again
                passes(generator, weights, to_input)
            for to_input, weights in ((False, True), (False, True), (True, False)):
                passes(discriminator, weights, to_input)
            if step % cyclegan_colors.R1_EVERY == 0:  # the penalty's own gradient: as one more pass
                passes(discriminator, True, True)

    seconds = [0.0, 0.0]
    for step in range(WARM_UP + STEPS):
        stamps = [time.perf_counter()]
        products(step)
        stamps.append(time.perf_counter())
        for adam in adams:
            adam.step()
        stamps.append(time.perf_counter())
        if step >= WARM_UP:
            seconds = [total + stamps[i + 1] - stamps[i] for i, total in enumerate(seconds)]
    return {"products": seconds[0] / STEPS, "Adam": seconds[1] / STEPS}


def layers_of(network: nn.Sequential) -> list[tuple[nn.Module, Tensor, Tensor, Tensor]]:
    """Of each convolution and linear layer: itself, its weights, an input, its output's gradient."""
    dtype = runs.precision(cyclegan_colors.PRECISION, torch.device("cpu"))
    x, found = torch.rand(cyclegan_colors.BATCH_SIZE, 3, 28, 28), []
    x = x.to(memory_format=torch.channels_last)
    for layer in network:
        y = layer(x).detach()
        if isinstance(layer, nn.Conv2d | nn.Linear):
            found.append((layer, *(tensor.detach().to(dtype) for tensor in (layer.weight, x, y))))
        x = y
    return found


@torch.no_grad()
def passes(layers: list[tuple[nn.Module, Tensor, Tensor, Tensor]], weights: bool, to_input: bool) -> None:
    """Forward, and backward to the weights, or through the first layer, or both."""
    for i, (layer, w, x, g) in enumerate(layers):
        to_x = to_input or i > 0
        if isinstance(layer, nn.Conv2d):
            F.conv2d(x, w, padding=layer.padding)
            places = [1, 1], layer.padding, [1, 1], False, [0, 0], 1
            torch.ops.aten.convolution_backward(g, x, w, [len(w)], *places, [to_x, weights, weights])
        else:
            torch.mm(x, w.T)
            if weights:
                torch.mm(g.T, x)
            torch.mm(g, w)


def main() -> None:
    versions = runs.versions(torch.device("cpu"), runs.constants(vars(cyclegan_colors), data.DOMAINS))
    print(", ".join(f"{name} {value}" for name, value in versions.items()))
    ways = {"script": script, "floor": floor, "usual way": usual_way}
    functions = {key: functools.partial(timing.apart, way) for key, way in ways.items()}
    values = timing.repeated(functions, REPEATS, "cyclegan_colors")
    steps, floors, usual = (timing.columns(values[key]) for key in ways)
    both = [sum(pair) for pair in zip(floors["products"], floors["Adam"], strict=True)]
    table = [["a step", "convolutions and products, ms", "Adam, ms", "script, ms", "of their sum"]]
    cells = [timing.median(times) for times in (floors["products"], floors["Adam"], steps["step"])]
    table.append(["cyclegan_colors", *cells, timing.ratio(steps["step"], both)])
    print(f"\n{common.markdown(table)}")
    table = [["a step", "script, ms", "usual way, ms", "times as long"]]
    table.append(timing.row("cyclegan_colors", {"script": steps["step"], "usual way": usual["step"]}, "script"))
    print(common.markdown(table))


if __name__ == "__main__":
    runs.command(main)
