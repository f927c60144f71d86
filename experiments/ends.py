"""The ends of the scale of digit accuracy: k-means on pixels, and an encoder with labels.

    python -m experiments.vaes k-means encoder-with-labels

The encoder is that of vae_knobs.py. Both see its training images, the encoder also its deformed
copies in other hues.
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import data
import judge
import metrics
import runs
import vae_knobs

METHOD = "labels"  # or "k-means"
N_TRIALS = 10  # random beginnings of k-means; the smallest squared error counts
EPOCHS = 24  # of the encoder; its learning rate falls linearly to 0
BATCH_SIZE = 250  # images
LEARNING_RATE = 0.0015  # Adam's
SEED = 0

OUTPUT_DIR = runs.ROOT / "outputs" / "ends"


def k_means(x: Tensor, k: int, rounds: int = 100) -> tuple[Tensor, float]:
    """Lloyd's algorithm from k points of x (n, D): centres (k, D), mean squared distance."""
    centres = x[torch.randperm(len(x))[:k]]
    for _ in range(rounds):
        nearest = (centres.square().sum(1) / 2 - x @ centres.T).argmin(1)
        members = F.one_hot(nearest, k).to(x)
        centres = members.T @ x / members.sum(0).clamp(min=1)[:, None]
    return centres, torch.cdist(x, centres).amin(1).square().mean().item()


def trained_encoder(train: data.ColoredSet, run: runs.Run) -> nn.Module:
    """vae_knobs.py's encoder with ten logits, trained by cross-entropy on deformed copies."""
    model = vae_knobs.KnobVAE(1, 10)
    encoder = nn.Sequential(model.encoder, model.categorical_head).to(run.device)
    optimizer = torch.optim.Adam(encoder.parameters(), LEARNING_RATE, fused=True)
    deform = functools.partial(data.deform, shift=vae_knobs.MAX_SHIFT, rotation=vae_knobs.MAX_ROTATION)
    deform = functools.partial(deform, scale=vae_knobs.MAX_SCALE)
    slant, width, weight = (vae_knobs.MAX_MOVE * unit for unit in vae_knobs.UNITS)
    bounds = torch.tensor([math.tan(math.radians(slant)), width / 100, weight], device=run.device)
    for epoch in range(EPOCHS):
        batches = torch.randperm(len(train)).to(run.device).split(BATCH_SIZE)
        for i, index in enumerate(tqdm(batches, f"epoch {epoch + 1}/{EPOCHS}", leave=False, disable=None)):
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - (epoch + i / len(batches)) / EPOCHS)
            copies, *_ = vae_knobs.known_copies(train, index, bounds, deform, vae_knobs.ELASTIC)
            loss = F.cross_entropy(encoder(copies), train.digits[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return encoder


def main() -> dict:
    """Trains and scores. Returns the results, which are also written to metrics.json."""
    with runs.start(OUTPUT_DIR, globals()) as run:
        train, test = data.colored_set(train=True, device=run.device), data.colored_set(train=False, device=run.device)
        run.code |= {"judge": judge.fingerprint(judge.load(run.device)), "images": len(train)}
        drawings, drawn = (part.to(run.device) for part in data.drawings())
        torch.manual_seed(SEED)
        if METHOD == "labels":
            encoder = trained_encoder(train, run)
            read = [metrics._over(lambda x: encoder(x).argmax(1), test)]
            colors = data.random_colors(len(drawings), data.TEST_COLOR_SEED).to(run.device)
            read.append(metrics._in_batches(lambda x: encoder(x).argmax(1), data.colorize(drawings, colors)))
        else:
            pixels = [images.flatten(1) / 255 for images in (train.images, test.images, drawings)]
            centres, _ = min((k_means(pixels[0], 10) for _ in range(N_TRIALS)), key=lambda found: found[1])
            of_train, *clusters = (torch.cdist(x, centres).argmin(1) for x in pixels)
            counts = metrics.category_counts(F.one_hot(of_train, 10).float(), train.digits)
            read = [counts.argmax(1).to(run.device)[cluster] for cluster in clusters]
        scores = [(r == digits).float().mean().item() for r, digits in zip(read, (test.digits, drawn), strict=True)]
        return run.finish(dict(zip(("digit_accuracy", "drawings_digit"), scores, strict=True)), [])


if __name__ == "__main__":
    runs.command(main)
