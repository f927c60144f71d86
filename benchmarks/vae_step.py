"""A training step of the three VAE scripts beside the usual way, and beside the matrix products alone.

    python -m benchmarks.vae_step

The usual way: a Dataset that colours an image with PIL when it is asked for, a DataLoader with four workers, Adam as it
comes, the same network and loss. The floor: the matrix products of forward and backward at the same batch size.
Milliseconds a step, means over the steps, medians of the repeats; ratios with their range over the repeats.
"""

import statistics
import time

import torch
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

STEPS = 150  # of each repeat
REPEATS = 5
BATCH_SIZE = 120
WORKERS = 4  # as in many a tutorial; with fewer, up to 0, on a machine with fewer cores


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


def usual_way(model: nn.Module, loss_of) -> float:
    """Seconds of a step, the mean of STEPS, after ten that are not counted."""
    loader = DataLoader(ColoredImages(), BATCH_SIZE, shuffle=True, num_workers=WORKERS)
    optimizer = torch.optim.Adam(model.parameters(), 0.001)
    stamps, total = [], 0.0
    for x in loader:
        loss = loss_of(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
        stamps.append(time.perf_counter())
        if len(stamps) > STEPS + 10:
            break
    return (stamps[-1] - stamps[10]) / STEPS  # the mean: a loader's batches come in bursts


def floor(model: nn.Module) -> float:
    """Seconds of the matrix products of a step: y = xW, and the gradients of W and, but for the first layer, of x."""
    sizes = [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]
    products = []
    for i, (n_in, n_out) in enumerate(sizes):
        x, w, g = torch.rand(BATCH_SIZE, n_in), torch.rand(n_out, n_in), torch.rand(BATCH_SIZE, n_out)
        products += [(x, w.T), (g.T, x)] + [(g, w)] * (i > 0)
    times = []
    for _ in range(STEPS):
        started = time.perf_counter()
        for a, b in products:
            torch.mm(a, b)
        times.append(time.perf_counter() - started)
    return statistics.mean(times)


def main() -> None:
    print(", ".join(f"{name} {value}" for name, value in runs.versions(torch.device("cpu")).items()))
    floors = []
    print(timing.head("", ["usual way, ms", "script, ms", "of usual", "matrix products, ms", "of usual"]))
    for script, model, options in (
        (vae_continuous, vae_continuous.ContinuousVAE(2), ()),
        (vae_discrete, vae_discrete.DiscreteVAE(3, 20), (0.7,)),
        (vae_joint, vae_joint.JointVAE(2, 3, 20), (0.7,)),
    ):

        def loss_of(x, script=script, model=model, options=options):
            return sum(script.elbo_terms(model, x, *options).values())

        functions = {
            "usual": lambda model=model, loss_of=loss_of: usual_way(model, loss_of),
            "script": lambda script=script: statistics.mean(timing.step_times(script, STEPS, DEVICE="cpu")),
            "floor": lambda model=model: floor(model),
        }
        values = timing.repeated(functions, REPEATS)
        print(timing.row(script.__name__, values, "usual"), flush=True)
        over = [a / b for a, b in zip(values["script"], values["floor"], strict=True)]
        floors.append(f"{script.__name__}: {statistics.median(over):.2f} times the matrix products")
    print(*floors, sep="\n")


if __name__ == "__main__":
    main()
