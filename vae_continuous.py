"""Continuous VAE: two Gaussian numbers are the whole code, on coloured MNIST.

Digit and hue share one plane. It has a place for most digits in most colours, but no axis of the
digit or of the hue.

    python vae_continuous.py     # edit the constants below, run again

Result, mean ± sd of seeds 0 to 4: test loss 272.8 ± 0.5 nats; digit and hue both right on demand
73.9 ± 1.8%, by swap 7.9 ± 0.2%. The fastest run took 8 minutes on one core of a server
of 2022.

Papers: Kingma & Welling, Auto-Encoding Variational Bayes, 2014; Polyak & Juditsky, Stochastic
Approximation by Averaging, 1992 (EMA_DECAY).
"""

import copy
from functools import partial
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

# Latent.
LATENT_DIM = 2  # numbers; more carry more of the image, at a higher KL; maps show the first two

# Training. The average of the weights is what is scored, shown and saved.
EPOCHS = 30
BATCH_SIZE = 120  # images
LEARNING_RATE = 0.001  # Adam's
EMA_DECAY = 0.99  # of the average, per ten steps; higher averages over more steps; 0: last weights
SEED = 0  # seeds the weights, the order of the images and the samples
DEVICE = "auto"  # a CUDA or ROCm GPU if there is one, else the CPU; or "cuda", "mps", "cpu"
RESUME = True  # go on with an unfinished run of the same code and constants; False: start over

# Figures.
REQUESTS = ((0, 0), (1, 120), (7, 240), (3, 60))  # four: (digit, hue in degrees)
STEP = 0.1  # of the grid around the point found for each request, in units of z

OUTPUT_DIR = runs.ROOT / "outputs" / "vae_continuous"

# Shapes below: B batch, D = LATENT_DIM.


class ContinuousVAE(nn.Module):
    """The encoder gives D means and D log variances. The decoder sees one sample (B, D)."""

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
            nn.Unflatten(1, (3, 28, 28)),  # pixel logits: the loss and decode() apply the sigmoid
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
    """KL of N(mu, exp(logvar)) to N(0, 1) in nats, elementwise. Kingma & Welling 2014, app. B."""
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar)


def elbo_terms(model: ContinuousVAE, x: Tensor) -> dict[str, Tensor]:
    """The terms of -ELBO in nats, summed over the batch; their sum is -ELBO. Kingma & Welling 2014.

    -ELBO = -E[log p(x | z)] + KL(q(z | x) ‖ p(z)). The first term is the binary cross-entropy of
    the pixels. It cannot reach 0, because pixels at a stroke's edge are neither 0 nor 1.
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
    """Trains, scores and draws. Returns the results, which are also written to metrics.json."""
    with runs.start(OUTPUT_DIR, globals()) as run:
        train, test = data.colored_set(train=True, device=run.device), data.colored_set(train=False, device=run.device)
        run.code |= {"judge": judge.fingerprint(judge.load(run.device)), "images": len(train)}

        torch.manual_seed(SEED)
        model = ContinuousVAE(LATENT_DIM).to(run.device)
        # The last bias starts pictures at the mean grey level. With torch's, the first steps only
        # darken them all; in half of the seeds of vae_discrete.py the code then carries nothing.
        nn.init.constant_(model.decoder[-2].bias, data.mean_level(train).logit().item())
        optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=True)  # fused: faster
        averaged = copy.deepcopy(model).requires_grad_(False)
        history = run.resume(model=model, averaged=averaged, optimizer=optimizer)  # a row an epoch

        for epoch in range(len(history) + 1, EPOCHS + 1):
            seen = []  # the terms of each batch
            batches = torch.randperm(len(train)).to(run.device).split(BATCH_SIZE)
            for i, index in enumerate(tqdm(batches, f"epoch {epoch}/{EPOCHS}", leave=False, disable=None), 1):
                step = (epoch - 1) * len(batches) + i
                terms = elbo_terms(model, train.colored(index))
                loss = terms["reconstruction"] + terms["kl_z"]
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

                seen.append({name: term.detach() for name, term in terms.items()})

                # The average follows the weights. At first its memory grows with the steps.
                if step % 10 == 0 or i == len(batches):
                    for mean, last in zip(averaged.parameters(), model.parameters(), strict=True):
                        mean.lerp_(last.detach(), max(1 - EMA_DECAY, 90 / (90 + step)))

            row = metrics.epoch_row(seen, partial(elbo_terms, averaged), averaged, train, test)
            history.append({"epoch": epoch, "seconds": run.seconds(), **row})
            run.checkpoint(history)  # with the state of what resume() was given
            metrics.print_epoch(history, EPOCHS)

        # Only from here on are labels used. They score what was learned.
        run.end_training()
        runs.save_model(OUTPUT_DIR / "model.pt", averaged, LATENT_DIM)
        scores = metrics.evaluate(averaged, lambda x, hard: elbo_terms(averaged, x), train, test)
        figures(averaged, train, test, scores, history)
        return run.finish(scores.results, history)


@torch.inference_mode()
def figures(
    model: ContinuousVAE,
    train: data.ColoredSet,
    test: data.ColoredSet,
    scores: metrics.Evaluation,
    history: list[dict],
) -> None:
    """Draws all figures. What a figure does not vary is taken from the first test image's code."""
    name = "Continuous VAE"
    plots.common_figures(OUTPUT_DIR, name, scores, history)
    codes, device = scores.test_codes, scores.test_codes.device

    # The plane decoded, z2 upwards.
    ticks = torch.linspace(-4, 4, 21, device=device)
    grid = metrics.plane_codes(codes[0], model.latents, ticks)
    pictures = model.decode(grid.flatten(0, 1)).unflatten(0, grid.shape[:2])
    plots.plane(OUTPUT_DIR / "plane.png", pictures, ticks, f"{name}: the plane of the continuous numbers (z), decoded")
    plots.latent_map(OUTPUT_DIR / "latent_map.png", codes, test.digits, test.hues, f"{name}: codes of the test images")

    # A point for each of the four requests, found as in control on demand, and its neighbourhood.
    wanted = torch.tensor(REQUESTS, dtype=torch.float32, device=device)
    points = metrics.find_codes(scores.train_codes, train, wanted)[:, 0]  # (4, D)
    n = 7
    offsets = (torch.arange(n, device=device) - n // 2) * STEP
    around = points[:, None, None].repeat(1, n, n, 1)  # (4, n, n, D)
    around[..., 0] += offsets
    if LATENT_DIM > 1:
        around[..., 1] += offsets.flip(0)[:, None]
    pictures = model.decode(around.flatten(0, 2)).unflatten(0, (len(points), n, n))
    names = [f"{data.class_names()[int(digit)]} in hue {hue}°" for digit, hue in REQUESTS]
    plots.neighborhoods(OUTPUT_DIR / "neighborhoods.png", pictures, names, points, STEP)

    # Moving: eight points of the plane, each going once around the centre.
    radii, angles = torch.arange(0.5, 4.5, 0.5, device=device), torch.arange(0, 360, 10)
    circles = torch.zeros(len(angles), len(radii), LATENT_DIM, device=device)
    circles[:, :, 0] = radii * angles.to(device).deg2rad().cos()[:, None]
    if LATENT_DIM > 1:
        circles[:, :, 1] = radii * angles.to(device).deg2rad().sin()[:, None]
    frames = model.decode(circles.flatten(0, 1)).unflatten(0, (len(angles), 1, len(radii)))
    titles = [f"{name}, angle of z: {angle}°, on eight circles" for angle in angles]
    dial = codes, test.hues, circles
    plots.movie(OUTPUT_DIR / "circles.gif", frames, titles, [""], radii.tolist(), "radius |z|", fps=6, dial=dial)


if __name__ == "__main__":
    runs.command(main)
