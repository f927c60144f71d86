"""A training step of the three VAE scripts beside its floor, what else is in it, and other ways.

    python -m benchmarks.vae_step

The floor: the matrix products of forward and backward, in the script's precision, then Adam's pass
over the weights. What else is in a step: its other parts, each alone. Two other ways, with the same
network, float32 and Adam as it comes: *with PIL*, a Dataset that colours an image with PIL when it
is asked for and a DataLoader with four workers; *in memory*, all coloured images in a TensorDataset
and a DataLoader without workers. Each repeat measures all in turn, each in a new process, and
prints a line for each. The tables have the medians of the repeats and of each repeat's own ratio,
with the range of the ratios.

An epoch of a script includes its test pass and checkpoint. One of the other ways is steps alone.
"""

import copy
import functools
import importlib
import itertools
import statistics
import time
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchvision
from PIL import Image, ImageOps
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import data
import runs
import vae_continuous
import vae_discrete
import vae_joint
from benchmarks import timing
from experiments import common

REPEATS = 3
STEPS = 150  # of the other ways, and of each part of a step alone; of a script all of an epoch
WARM_UP = 11  # steps that are not counted
BATCH_SIZE = 120
WORKERS = 4  # as in many a tutorial
TAU = 0.7
MODELS = {
    "vae_continuous": vae_continuous.ContinuousVAE(2),
    "vae_discrete": vae_discrete.DiscreteVAE(3, 20),
    "vae_joint": vae_joint.JointVAE(2, 3, 20),
}


class ColoredImages(Dataset):
    """Each image is coloured by PIL when it is asked for."""

    def __init__(self):
        self.images, _ = data.load(train=True)
        self.colors = (data.random_colors(len(self.images), data.TRAIN_COLOR_SEED) * 255).round().int().tolist()
        self.to_tensor = torchvision.transforms.ToTensor()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> torch.Tensor:
        grey = Image.fromarray(self.images[i].numpy())
        return self.to_tensor(ImageOps.colorize(grey, (0, 0, 0), tuple(self.colors[i])))


def outputs(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixel logits and the sum of the KL terms."""
    if isinstance(model, vae_continuous.ContinuousVAE):
        logits, kl = model(x)
        return logits, kl.sum()
    logits, *kl, log_q = model(x, TAU)
    return logits, sum(part.sum() for part in kl) + vae_joint.categorical_kl(log_q).sum()


def with_pil(name: str) -> dict[str, float]:
    """Seconds of a step, and of the steps of an epoch."""
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than processors
    return other_way(name, DataLoader(ColoredImages(), BATCH_SIZE, shuffle=True, num_workers=WORKERS))


def in_memory(name: str) -> dict[str, float]:
    """Seconds of a step, and of the steps of an epoch."""
    images, _ = data.load(train=True)
    colored = data.colorize(images, data.random_colors(len(images), data.TRAIN_COLOR_SEED))
    return other_way(name, DataLoader(TensorDataset(colored), BATCH_SIZE, shuffle=True))


def other_way(name: str, loader: DataLoader) -> dict[str, float]:
    model = MODELS[name]
    optimizer = torch.optim.Adam(model.parameters(), 0.001)
    stamps = []
    for x in itertools.islice(loader, WARM_UP + STEPS):
        x = x[0] if isinstance(x, list) else x
        logits, kl = outputs(model, x)
        loss = F.binary_cross_entropy_with_logits(logits, x, reduction="sum") + kl
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # as in loops that print it
        stamps.append(time.perf_counter())
    step = (stamps[-1] - stamps[WARM_UP - 1]) / STEPS
    return {"step": step, "epoch": step * len(loader)}


def script_way(name: str) -> dict[str, float]:
    """Seconds of a step, and of the first epoch with its test pass and its checkpoint."""
    stamps = timing.first_epoch(importlib.import_module(name), DEVICE="cpu", BATCH_SIZE=BATCH_SIZE)
    *steps, _ = stamps
    step = (steps[-1] - steps[WARM_UP - 1]) / (len(steps) - WARM_UP)
    return {"step": step, "epoch": stamps[-1] - stamps[0] + step}


def alone(name: str) -> dict[str, float]:
    """Seconds of each part of a step, alone."""
    runs.keep_freed_memory(True)  # as the scripts do
    dtype = runs.precision(getattr(importlib.import_module(name), "PRECISION", "float32"), torch.device("cpu"))
    return floor(MODELS[name], dtype) | others(MODELS[name], dtype)


def floor(model: nn.Module, dtype: torch.dtype) -> dict[str, float]:
    """The matrix products in this dtype, Adam after them, and the products at torch's default.

    Of each layer y = xWᵀ, the gradient of W and, but for the first layer, that of x.
    """
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    for parameter in model.parameters():
        parameter.grad = torch.rand_like(parameter)

    def products(dtype: torch.dtype) -> Callable:
        batch, sizes = BATCH_SIZE, [(m.out_features, m.in_features) for m in layers]
        factors = [[torch.rand(s, dtype=dtype) for s in ((batch, i), (batch, o), (o, i))] for o, i in sizes]

        def forward_and_backward() -> None:
            for n, (x, g, weight) in enumerate(factors):
                torch.mm(x, weight.T)
                torch.mm(g.T, x)
                if n:
                    torch.mm(g, weight)

        return forward_and_backward

    torch.set_float32_matmul_precision("highest" if runs.CAPABILITIES.get("amx_bf16") else "medium")
    as_in_the_script, adam = seconds(products(dtype), optimizer.step)
    torch.set_float32_matmul_precision("highest")
    usual = seconds(products(torch.float32))[0]
    return {"products": as_in_the_script, "Adam": adam, "products at torch's default": usual}


def others(model: nn.Module, dtype: torch.dtype) -> dict[str, float]:
    """The other parts, those of forward and backward together."""
    train = data.colored_set(train=True, device=torch.device("cpu"))
    batches, steps = iter(torch.randperm(len(train)).split(BATCH_SIZE)), itertools.count()
    x = train.colored(next(batches))
    logits = x.logit(1e-4).requires_grad_()  # of a good reconstruction
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    gradients = [torch.randn(BATCH_SIZE, m.out_features) for m in layers]
    hidden = [torch.randn(BATCH_SIZE, n).requires_grad_() for n in (512, 256, 256, 512)]
    average = copy.deepcopy(model).requires_grad_(False)
    latents = copy.deepcopy(model)  # its sampling, the heads given
    latents.encoder = latents.decoder = nn.Identity()
    for head in {"gaussian_head", "categorical_head"} & dict(model.named_children()).keys():
        setattr(latents, head, Given(BATCH_SIZE, getattr(model, head).out_features))

    def samples() -> None:
        code, kl = outputs(latents, x)
        (code.sum() + kl).backward()

    def relus() -> None:
        for h in hidden:
            h.relu().backward(h.detach())

    @torch.no_grad()
    def averaging() -> None:  # of every tenth step
        if next(steps) % 10 == 0:
            for mean, last in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(last, 0.01)

    parts = {
        "colouring a batch": lambda: train.colored(next(batches)),
        "cross-entropy": lambda: F.binary_cross_entropy_with_logits(logits, x, reduction="sum").backward(),
        "samples and KL": samples,
        "ReLUs": relus,
        "gradients of the biases": lambda: [g.sum(0) for g in gradients],
        "average of the weights": averaging,
        "weights to the precision, gradients back": lambda: [m.weight.data.to(dtype).float() for m in layers],
        ".item() of loss and terms": lambda: [term.item() for term in gradients[0][0, :4]],
    }
    return {part: seconds(function)[0] for part, function in parts.items()}


class Given(nn.Module):
    """A layer whose output is given, whatever its input."""

    def __init__(self, *shape: int):
        super().__init__()
        self.output = nn.Parameter(torch.randn(shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output


def seconds(*functions: Callable) -> list[float]:
    """The mean of each over STEPS, called in turn."""
    times = []
    for _ in range(WARM_UP + STEPS):
        stamps = [time.perf_counter()]
        for function in functions:
            function()
            stamps.append(time.perf_counter())
        times.append([after - before for before, after in itertools.pairwise(stamps)])
    return [statistics.mean(column) for column in zip(*times[WARM_UP:], strict=True)]


def tables(measured: dict[str, dict[str, list[dict]]]) -> str:
    """Markdown, from script → "script", "alone", "in memory", "with PIL" → what each repeat gave."""
    times = "times as long"
    floors = [["a step", "matrix products, ms", "Adam, ms", "script, ms", "of their sum"]]
    floors[0] += ["products at torch's default, ms", "of the products"]
    rest, steps = {}, [["a step", "script, ms", "in memory, ms", times, "with PIL, ms", times]]
    epochs = [["an epoch", "script, s", "in memory, s", times, "with PIL, s", times]]
    for name, values in measured.items():
        ways = {key: timing.columns(repeats) for key, repeats in values.items()}
        script, parts = ways["script"], ways.pop("alone")
        both = [sum(pair) for pair in zip(parts["products"], parts["Adam"], strict=True)]
        cells = [timing.median(times) for times in (parts["products"], parts["Adam"], script["step"])]
        default = parts.pop("products at torch's default")
        cells += [timing.ratio(script["step"], both), timing.median(default), timing.ratio(default, parts["products"])]
        floors.append([name, *cells])
        parts["unexplained"] = [a - sum(b) for a, *b in zip(script["step"], *parts.values(), strict=True)]
        for part in [part for part in parts if part not in ("products", "Adam")]:
            rest.setdefault(part, [part]).append(timing.median(parts[part], digits=2))
        steps.append(timing.row(name, {key: way["step"] for key, way in ways.items()}, "script"))
        epochs.append(timing.row(name, {key: way["epoch"] for key, way in ways.items()}, "script", unit=1))
    what_else = [["what else, ms", *measured], *rest.values()]
    return "\n".join(common.markdown(lines) for lines in (floors, what_else, steps, epochs))


def main() -> None:
    versions = runs.versions(torch.device("cpu"), runs.constants(vars(vae_joint)))
    print(", ".join(f"{name} {value}" for name, value in versions.items()))
    ways = {"script": script_way, "alone": alone, "in memory": in_memory, "with PIL": with_pil}
    measured = {}
    for name in MODELS:
        calls = {key: functools.partial(timing.apart, way, name) for key, way in ways.items()}
        measured[name] = timing.repeated(calls, REPEATS, name)
    print(f"\n{tables(measured)}")


if __name__ == "__main__":
    runs.command(main)
