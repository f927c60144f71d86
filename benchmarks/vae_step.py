"""A training step and an epoch of the three VAE scripts beside the usual way, and beside the matrix products alone.

    python -m benchmarks.vae_step

The usual way: a Dataset that colours an image with PIL when it is asked for, a DataLoader with four workers, float32
with torch's default matrix products, Adam as it comes, the same network. The floor: the matrix products of forward and
backward alone, at the same batch size, computed as in the script; and the same at torch's default. Medians of the
repeats, each the mean over an epoch; ratios with their range over the repeats. Each is measured in a process of its
own. An epoch of a script has its test pass and its checkpoint in it, one of the usual way neither.
"""

import functools
import importlib
import time

import torch
import torch.nn.functional as F
import torchvision
from PIL import Image, ImageOps
from torch import nn
from torch.utils.data import DataLoader, Dataset

import data
import runs
import vae_continuous
import vae_discrete
import vae_joint
from benchmarks import timing

REPEATS = 3
BATCH_SIZE = 120
WORKERS = 4  # as in many a tutorial
TAU = 0.7


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


def usual_way(model: nn.Module) -> tuple[float, float]:
    """Seconds of a step, the mean over an epoch without its first eleven, and of the epoch."""
    loader = DataLoader(ColoredImages(), BATCH_SIZE, shuffle=True, num_workers=WORKERS)
    optimizer = torch.optim.Adam(model.parameters(), 0.001)
    started, stamps = time.perf_counter(), []
    for x in loader:
        if isinstance(model, vae_continuous.ContinuousVAE):
            logits, kl = model(x)
        elif isinstance(model, vae_discrete.DiscreteVAE):
            logits, log_q = model(x, TAU)
            kl = vae_discrete.categorical_kl(log_q)
        else:
            logits, kl_z, log_q = model(x, TAU)
            kl = torch.cat([kl_z, vae_joint.categorical_kl(log_q)], 1)
        loss = F.binary_cross_entropy_with_logits(logits, x, reduction="sum") + kl.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # as in loops that print it
        stamps.append(time.perf_counter())
    return (stamps[-1] - stamps[10]) / (len(stamps) - 11), stamps[-1] - started


def script_way(name: str) -> tuple[float, float]:
    """The same of the script of that name."""
    stamps = timing.first_epoch(importlib.import_module(name), DEVICE="cpu", BATCH_SIZE=BATCH_SIZE)
    step = (stamps[-3] - stamps[10]) / (len(stamps) - 13)  # the last two: test pass, checkpoint
    return step, stamps[-1] - stamps[0] + step


def products(model: nn.Module, matmul_precision: str) -> float:
    """Seconds of the matrix products of a step: y = xWᵀ, and the gradients of W and, but for the first layer, of x."""
    runs.keep_freed_memory()  # as the scripts do
    torch.set_float32_matmul_precision(matmul_precision)
    sizes = [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]
    factors = []
    for i, (n_in, n_out) in enumerate(sizes):
        shapes = (BATCH_SIZE, n_in), (n_out, n_in), (BATCH_SIZE, n_out)
        x, w, g = (torch.rand(*shape) for shape in shapes)
        factors += [(x, w.T), (g.T, x)] + [(g, w)] * (i > 0)
    times = []
    for _ in range(500):  # steps of an epoch
        started = time.perf_counter()
        for a, b in factors:
            torch.mm(a, b)
        times.append(time.perf_counter() - started)
    return sum(times[10:]) / len(times[10:])


def main() -> None:
    versions = runs.versions(torch.device("cpu"), runs.constants(vars(vae_joint)))
    print(", ".join(f"{name} {value}" for name, value in versions.items()))
    floors, steps, epochs = [], [], []
    for script, model in (
        (vae_continuous, vae_continuous.ContinuousVAE(2)),
        (vae_discrete, vae_discrete.DiscreteVAE(3, 20)),
        (vae_joint, vae_joint.JointVAE(2, 3, 20)),
    ):
        calls = {
            "usual": (usual_way, model),
            "script": (script_way, script.__name__),
            "products": (products, model, script.MATMUL_PRECISION),
            "default": (products, model, "highest"),
        }
        values = timing.repeated({key: functools.partial(timing.apart, *call) for key, call in calls.items()}, REPEATS)
        step, epoch = ({name: [pair[i] for pair in values[name]] for name in ("script", "usual")} for i in range(2))
        beside = {"products": values["products"], "script": step["script"], "default": values["default"]}
        floors.append(timing.row(script.__name__, beside, "products"))
        steps.append(timing.row(script.__name__, step, "script"))
        epochs.append(timing.row(script.__name__, epoch, "script", unit=1))
        print(f"{script.__name__} is done.", flush=True)
    times = "times as long"
    for title, columns, rows in (
        ("a step", ("matrix products, ms", "script, ms", times, "products at torch's default, ms", times), floors),
        ("a step", ("script, ms", "usual way, ms", times), steps),
        ("an epoch", ("script, s", "usual way, s", times), epochs),
    ):
        print(timing.head(title, list(columns)), *rows, "", sep="\n")


if __name__ == "__main__":
    runs.command(main)
