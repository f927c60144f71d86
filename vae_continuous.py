"""Continuous VAE: two Gaussian numbers are the whole code, on coloured MNIST.

Digit and hue are folded into one plane: it has a place for most digits in most colours, but no axis of its own for
either.

    python vae_continuous.py     # edit the constants below, run again

Result, mean ± sd of seeds 0, 1, 2: test loss 277.6 ± 0.6 nats; digit and hue both right on demand 73.7 ± 2.9%, by swap
7.4 ± 0.1%. Seed 0 took 2.1 minutes on 2 cores of an AMD EPYC (Zen 5), torch 2.15.0.

Paper: Kingma & Welling, Auto-Encoding Variational Bayes, 2014.
"""

import functools
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import data
import metrics
import plots
import runs

# Latent. More numbers carry more of the image, at a higher KL; the maps of the plane show the first two.
LATENT_DIM = 2

# Training.
EPOCHS = 30
BATCH_SIZE = 120  # images
LEARNING_RATE = 0.001  # Adam's
SEED = 0  # of weights, order of images and samples
DEVICE = "auto"  # "auto" takes CUDA, then Apple's MPS, then the CPU; or name one: "cuda", "mps", "cpu"
# For torch.set_float32_matmul_precision, in training. "medium" halves the time of the matrix products on an AMD Zen 5,
# in float32 all the same; a GPU or a CPU with AMX may round their factors for it: see "matrix products" in the log.
# "highest": never.
MATMUL_PRECISION = "medium"
RESUME = True  # go on with an unfinished run of the same constants; False: always start afresh

# Figures. Four requests of (digit, hue in degrees), and the step of the grid around the spot found for each.
REQUESTS = ((0, 0), (1, 120), (7, 240), (3, 60))
STEP = 0.1

OUTPUT_DIR = Path(__file__).parent / "outputs" / "vae_continuous"

# Shapes below: B batch, D = LATENT_DIM.


class ContinuousVAE(nn.Module):
    """The encoder gives D means and D log variances; the decoder sees one sample of the D numbers."""

    def __init__(self, latent_dim: int):
        super().__init__()
        self.latent_dim = latent_dim
        self.encoder = nn.Sequential(
            nn.Flatten(),
            nn.Linear(3 * 28 * 28, 512),
            nn.ReLU(),
            nn.Linear(512, 256),
            nn.ReLU(),
        )
        self.gaussian_head = nn.Linear(256, 2 * latent_dim)  # means, then log variances
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, 256),
            nn.ReLU(),
            nn.Linear(256, 512),
            nn.ReLU(),
            nn.Linear(512, 3 * 28 * 28),
            nn.Unflatten(1, (3, 28, 28)),  # pixel logits: the sigmoid is in the loss and in decode()
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, 28, 28) → mu (B, D), logvar (B, D)."""
        h = self.encoder(x)
        mu, logvar = self.gaussian_head(h).chunk(2, dim=1)
        return mu, logvar

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, 28, 28) → pixel logits of their reconstruction, KL (B, D) in nats."""
        mu, logvar = self.encode(x)
        z = mu + (0.5 * logvar).exp() * torch.randn_like(mu)  # (B, D)
        return self.decoder(z), gaussian_kl(mu, logvar)

    def kl(self, x: Tensor) -> Tensor:
        """KL of each number in nats, (B, D)."""
        return gaussian_kl(*self.encode(x))

    @property
    def latents(self) -> dict[str, slice]:
        """Name → columns of a code, one entry for each number."""
        return {f"z{i + 1}": slice(i, i + 1) for i in range(self.latent_dim)}

    def code(self, x: Tensor) -> Tensor:
        """Images (B, 3, 28, 28) → their deterministic codes (B, D): the posterior means."""
        return self.encode(x)[0]

    def decode(self, code: Tensor) -> Tensor:
        """Codes (B, D) → images (B, 3, 28, 28) in [0, 1]."""
        return self.decoder(code).sigmoid()


# Same as vae_joint.gaussian_kl.
def gaussian_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL of N(mu, exp(logvar)) to N(0, 1) in nats, elementwise. Kingma & Welling 2014, appendix B."""
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar)


def elbo_terms(model: ContinuousVAE, x: Tensor) -> dict[str, Tensor]:
    """The terms of -ELBO, each summed over the batch, in nats: one scale for both, so that they can be added.

    Reconstruction is the binary cross-entropy of the pixels, fractional ones included.
    """
    logits, kl_z = model(x)
    return {
        "reconstruction": F.binary_cross_entropy_with_logits(logits, x, reduction="sum"),
        "kl_z": kl_z.sum(),
    }


def load_model(path: Path) -> ContinuousVAE:
    """The trained network from a model.pt that this script wrote, on the CPU, in eval mode."""
    return runs.load_model(path, ContinuousVAE)


def main() -> dict:
    """Trains, scores and draws; returns the results that are written to metrics.json."""
    started = time.perf_counter()
    constants = runs.constants(globals())
    device = runs.begin(OUTPUT_DIR, constants)
    train, test = data.colored_set(train=True, device=device), data.colored_set(train=False, device=device)
    runs.check_batch_size(BATCH_SIZE, len(train.images))
    metrics.judge(device)  # trained now, if it has to be
    floors = {"train": metrics.pixel_entropy(train), "test": metrics.pixel_entropy(test)}

    torch.manual_seed(SEED)
    model = ContinuousVAE(LATENT_DIM).to(device)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=True)  # fused: the same, in one pass
    history = runs.resume(OUTPUT_DIR, constants, model=model, optimizer=optimizer)  # one row an epoch
    seconds_before = sum(row["seconds"] for row in history)
    step = len(history) * math.ceil(len(train.images) / BATCH_SIZE)
    last_loss = math.nan

    torch.set_float32_matmul_precision(MATMUL_PRECISION)  # until the scores: in the test pass of each epoch, too
    while len(history) < EPOCHS:
        epoch, epoch_started = len(history) + 1, time.perf_counter()
        sums = dict.fromkeys(("reconstruction", "kl_z"), 0.0)
        batches = torch.randperm(len(train.images)).to(device).split(BATCH_SIZE)
        for index in tqdm(batches, f"epoch {epoch}/{EPOCHS}", leave=False, disable=None):
            x = data.colorize(train.images[index], train.colors[index])  # (B, 3, 28, 28)
            terms = elbo_terms(model, x)
            loss = sum(terms.values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

            runs.check_finite(loss.item(), epoch, step, last_loss)
            last_loss = loss.item()
            sums = {name: sums[name] + term.item() for name, term in terms.items()}
            step += 1

        row = {f"train_{name}": value / len(train.images) for name, value in sums.items()}
        test_terms = metrics.mean_terms(functools.partial(elbo_terms, model), test)
        runs.check_finite(sum(test_terms.values()), epoch, step, last_loss)
        row |= {f"test_{name}": value for name, value in test_terms.items()}
        history.append(row | {"seconds": time.perf_counter() - epoch_started})
        runs.print_epoch(history, EPOCHS, floors)
        runs.checkpoint(OUTPUT_DIR, constants, history, model=model, optimizer=optimizer)

    # Scores. Labels are used from here on alone.
    torch.set_float32_matmul_precision("highest")  # never rounded, whatever the machine
    runs.give_memory_back()  # scores need larger blocks than training steps
    model.eval()
    train_codes, test_codes = metrics.codes_of(model, train), metrics.codes_of(model, test)
    color_latents = metrics.color_latents(model.latents, train_codes, train)
    demand, demand_pictures, demand_right = metrics.control_on_demand(model, train_codes, train)
    results = {
        **metrics.elbo(lambda x, hard: elbo_terms(model, x), test),
        **metrics.reconstruction(model, test_codes, test),
        **demand,
        **metrics.control_by_swap(model, test_codes, color_latents, test),
        "color_latents": color_latents,
        "latents": metrics.latent_usage(model, test_codes, test),  # warns of a dead one
    }

    # Figures. `base` is the code of the first test image: what a figure does not vary stays as it is there.
    with torch.inference_mode():
        name, base = "Continuous VAE", test_codes[0]
        plots.loss_curves(OUTPUT_DIR / "loss.png", history, floors)
        plots.latent_usage(OUTPUT_DIR / "latent_usage.png", results["latents"], color_latents, name)
        plots.reconstructions(OUTPUT_DIR / "reconstructions.png", *metrics.reconstructed(model, test), results, name)
        plots.control_on_demand(OUTPUT_DIR / "control_on_demand.png", demand_pictures, demand_right, results, name)
        swaps = metrics.swap_examples(model, test_codes, color_latents, test)
        plots.control_by_swap(OUTPUT_DIR / "control_by_swap.png", *swaps, results, name)

        # The plane decoded, z2 upwards.
        n = 21
        ticks = torch.linspace(-4, 4, n, device=device)
        codes = base.repeat(n, n, 1)
        codes[:, :, 0] = ticks
        if LATENT_DIM > 1:
            codes[:, :, 1] = ticks.flip(0)[:, None]
        pictures = model.decode(codes.flatten(0, 1)).unflatten(0, (n, n))
        plots.plane(OUTPUT_DIR / "plane.png", pictures, ticks, "Continuous VAE: the plane, decoded")
        title = "Continuous VAE: codes of the test images"
        plots.latent_map(OUTPUT_DIR / "latent_map.png", test_codes, test.digits, test.hues, title)

        # A spot for each of the four requests, found as in control on demand, and its neighbourhood.
        wanted = torch.tensor(REQUESTS, dtype=torch.float32, device=device)
        spots = metrics.find_codes(train_codes, train, wanted)[:, 0]  # (4, D)
        n = 7
        offsets = (torch.arange(n, device=device) - n // 2) * STEP
        codes = spots[:, None, None].repeat(1, n, n, 1)  # (4, n, n, D)
        codes[..., 0] += offsets
        if LATENT_DIM > 1:
            codes[..., 1] += offsets.flip(0)[:, None]
        pictures = model.decode(codes.flatten(0, 2)).unflatten(0, (len(spots), n, n))
        names = [f"{data.class_names()[digit]} in hue {hue}°" for digit, hue in REQUESTS]
        plots.neighborhoods(OUTPUT_DIR / "neighborhoods.png", pictures, names, spots, STEP)

        # Moving: eight points of the plane, each going once around the centre.
        radii, angles = torch.arange(0.5, 4.5, 0.5, device=device), torch.arange(0, 360, 10)
        codes = torch.zeros(len(angles), len(radii), LATENT_DIM, device=device)
        codes[:, :, 0] = radii * angles.to(device).deg2rad().cos()[:, None]
        if LATENT_DIM > 1:
            codes[:, :, 1] = radii * angles.to(device).deg2rad().sin()[:, None]
        frames = model.decode(codes.flatten(0, 1)).unflatten(0, (len(angles), 1, len(radii)))
        titles = [f"Continuous VAE: z at {angle}° on eight circles" for angle in angles]
        plots.movie(OUTPUT_DIR / "circles.gif", frames, titles, [""], radii.tolist(), "radius |z|", fps=6)

    runs.save_model(OUTPUT_DIR / "model.pt", model, LATENT_DIM)
    runs.finish(OUTPUT_DIR, constants, seconds_before + time.perf_counter() - started, results, history)
    return results


if __name__ == "__main__":
    main()
