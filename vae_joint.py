"""Joint VAE: continuous numbers and categorical variables in one code, on coloured MNIST.

The model divides the work, although the loss does not ask for it. The two continuous numbers form a
colour wheel, whose angle is the hue and whose radius is the weight of the stroke. The categories
hold the digit and its style.

    python vae_joint.py          # edit the constants below, run again

Result, mean ± sd of seeds 0 to 4: test loss 216.3 ± 0.4 nats; digit and hue both right on demand
100.0 ± 0.0%, by swap 88.0 ± 0.4%. The fastest run took 6 minutes on one core of a server
of 2022.

Papers: Kingma & Welling, Auto-Encoding Variational Bayes, 2014 (the ELBO, the Gaussian latent);
Jang, Gu & Poole, Categorical Reparameterization with Gumbel-Softmax, 2017; Maddison, Mnih & Teh,
The Concrete Distribution, 2017 (the categorical latent); Dupont, Learning Disentangled Joint
Representations, 2018 (both at once); Higgins et al., beta-VAE, 2017, and Alemi et al., Fixing a
Broken ELBO, 2018 (BETA); Polyak & Juditsky, Stochastic Approximation by Averaging, 1992
(EMA_DECAY).
"""

import copy
import math
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

# Latents.
LATENT_DIM = 2  # continuous numbers, one Gaussian each; more of them let style into z
N_VARIABLES = 3  # categorical variables; more: more of the digit's shape, at a higher KL
N_CATEGORIES = 20  # categories of each

# Temperature of the relaxed samples: max(TAU_MIN, TAU_START * exp(-TAU_DECAY * step)).
TAU_START = 1.0  # at the first batch; higher: smoother samples, farther from one-hot codes
TAU_DECAY = 0.0003  # per batch, counted over all epochs; tau reaches 0.5 in the fifth epoch
TAU_MIN = 0.5  # lower: samples nearer to one-hot codes, noisier gradients
HARD = False  # True: one-hot samples with the gradient of the relaxed ones (straight-through)

# Loss. The log and the results are never weighted.
BETA = 1.0  # weight of both KL terms; 1: the ELBO; lower: the code may hold more of the image

# Training. The average of the weights is what is scored, shown and saved.
EPOCHS = 30
BATCH_SIZE = 120  # images
LEARNING_RATE = 0.001  # Adam's
EMA_DECAY = 0.99  # of the average, per ten steps; higher averages over more steps; 0: last weights
SEED = 0  # seeds the weights, the order of the images and the samples
DEVICE = "auto"  # a CUDA or ROCm GPU if there is one, else the CPU; or "cuda", "mps", "cpu"
PRECISION = "auto"  # in training: "auto" is "bfloat16" on a CPU that is fast at it, else "float32"
RESUME = True  # go on with an unfinished run of the same code and constants; False: start over

# Figures.
Z_VARIANCE = 5.0  # of the continuous numbers, drawn anew for each cell of the grid of categories

OUTPUT_DIR = runs.ROOT / "outputs" / "vae_joint"

# Shapes below: B batch, D = LATENT_DIM, N = N_VARIABLES, K = N_CATEGORIES.


class JointVAE(nn.Module):
    """One encoder with a Gaussian and a categorical head. A code: the numbers, the variables."""

    def __init__(self, latent_dim: int, n_variables: int, n_categories: int):
        super().__init__()
        self.latent_dim, self.n_variables, self.n_categories = latent_dim, n_variables, n_categories
        self.encoder = nn.Sequential(
            nn.Flatten(),
            nn.Linear(3 * 28 * 28, 512),
            nn.ReLU(),
            nn.Linear(512, 256),
            nn.ReLU(),
        )
        self.gaussian_head = nn.Linear(256, 2 * latent_dim)  # means, then log variances
        self.categorical_head = nn.Linear(256, n_variables * n_categories)  # logits: no activation
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim + n_variables * n_categories, 256),
            nn.ReLU(),
            nn.Linear(256, 512),
            nn.ReLU(),
            nn.Linear(512, 3 * 28 * 28),
            nn.Unflatten(1, (3, 28, 28)),  # pixel logits: the loss and decode() apply the sigmoid
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, 28, 28) → mu (B, D), logvar (B, D), log q (B, N, K)."""
        h = self.encoder(x)
        mu, logvar = self.gaussian_head(h).float().chunk(2, dim=1)
        logits = self.categorical_head(h).float().view(-1, self.n_variables, self.n_categories)
        return mu, logvar, logits.log_softmax(-1)  # over the K categories of each variable

    def forward(self, x: Tensor, tau: float, hard: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, 28, 28) → pixel logits of reconstructions, KL (B, D), log q (B, N, K)."""
        mu, logvar, log_q = self.encode(x)
        logits = self.decoder(self.sample(mu, logvar, log_q, tau, hard)).float()
        return logits, gaussian_kl(mu, logvar), log_q

    def sample(self, mu: Tensor, logvar: Tensor, log_q: Tensor, tau: float, hard: bool = False) -> Tensor:
        """A code (B, D + N·K) drawn from what encode() gives."""
        z = mu + (0.5 * logvar).exp() * torch.randn_like(mu)  # (B, D)
        v = F.gumbel_softmax(log_q, tau, hard)  # (B, N, K)
        return torch.cat([z, v.flatten(1)], 1)

    def kl(self, x: Tensor) -> Tensor:
        """KL of each latent in nats, (B, D + N)."""
        mu, logvar, log_q = self.encode(x)
        return torch.cat([gaussian_kl(mu, logvar), categorical_kl(log_q)], 1)

    @property
    def latents(self) -> dict[str, slice]:
        """Name → columns of a code, one entry for each continuous number and each variable."""
        d, k = self.latent_dim, self.n_categories
        return {f"z{i + 1}": slice(i, i + 1) for i in range(d)} | {
            f"v{i + 1}": slice(d + i * k, d + (i + 1) * k) for i in range(self.n_variables)
        }

    def code(self, x: Tensor) -> Tensor:
        """Images (B, 3, 28, 28) → codes (B, D + N·K): the means, then the likeliest categories."""
        mu, _, log_q = self.encode(x)
        return torch.cat([mu, F.one_hot(log_q.argmax(-1), self.n_categories).flatten(1)], 1)

    def decode(self, code: Tensor) -> Tensor:
        """Codes (B, D + N·K) → images (B, 3, 28, 28) in [0, 1]."""
        return self.decoder(code).float().sigmoid()


def gaussian_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL of N(mu, exp(logvar)) to N(0, 1) in nats, elementwise. Kingma & Welling 2014, app. B."""
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar)


def categorical_kl(log_q: Tensor) -> Tensor:
    """KL of each variable to uniform over its K categories in nats: (B, N, K) → (B, N).

    log K - H(q), with H(q) = -sum q log q. Jang, Gu & Poole 2017.
    """
    return math.log(log_q.shape[-1]) + (log_q.exp() * log_q).sum(-1)


def elbo_terms(model: JointVAE, x: Tensor, tau: float, hard: bool = False) -> dict[str, Tensor]:
    """The terms of -ELBO in nats, summed over the batch; their sum is -ELBO. Kingma & Welling 2014.

    -ELBO = -E[log p(x | z, v)] + KL(q(z | x) ‖ p(z)) + KL(q(v | x) ‖ p(v)). The first term is the
    binary cross-entropy of the pixels. It cannot reach 0, because pixels at a stroke's edge are
    neither 0 nor 1.
    """
    logits, kl_z, log_q = model(x, tau, hard)
    return {
        "reconstruction": F.binary_cross_entropy_with_logits(logits, x, reduction="sum"),
        "kl_z": kl_z.sum(),
        "kl_v": categorical_kl(log_q).sum(),
    }


def load_model(path: Path) -> JointVAE:
    """The trained network from a model.pt that this script wrote, on the CPU, in eval mode."""
    return runs.load_model(path, JointVAE)


def main() -> dict:
    """Trains, scores and draws. Returns the results, which are also written to metrics.json."""
    with runs.start(OUTPUT_DIR, globals()) as run:
        train, test = data.colored_set(train=True, device=run.device), data.colored_set(train=False, device=run.device)
        run.code |= {"judge": judge.fingerprint(judge.load(run.device)), "images": len(train)}

        torch.manual_seed(SEED)
        model = JointVAE(LATENT_DIM, N_VARIABLES, N_CATEGORIES).to(run.device)
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
                tau = max(TAU_MIN, TAU_START * math.exp(-TAU_DECAY * (step - 1)))
                with run.autocast():
                    terms = elbo_terms(model, train.colored(index), tau, HARD)
                loss = terms["reconstruction"] + BETA * (terms["kl_z"] + terms["kl_v"])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

                seen.append({name: term.detach() for name, term in terms.items()})

                # The average follows the weights. At first its memory grows with the steps.
                if step % 10 == 0 or i == len(batches):
                    for mean, last in zip(averaged.parameters(), model.parameters(), strict=True):
                        mean.lerp_(last.detach(), max(1 - EMA_DECAY, 90 / (90 + step)))

            row = metrics.epoch_row(seen, partial(elbo_terms, averaged, tau=tau, hard=HARD), averaged, train, test)
            history.append({"epoch": epoch, "seconds": run.seconds(), "tau": tau, **row})
            run.checkpoint(history)  # with the state of what resume() was given
            metrics.print_epoch(history, EPOCHS)

        # Only from here on are labels used. They score what was learned, as it is saved.
        run.end_training()
        runs.save_model(OUTPUT_DIR / "model.pt", averaged.half(), LATENT_DIM, N_VARIABLES, N_CATEGORIES)
        scores = metrics.evaluate(averaged.float(), partial(elbo_terms, averaged, tau=history[-1]["tau"]), train, test)
        scores.results.update(metrics.color_wheel_scores(averaged.latents, scores.test_codes, test))
        figures(averaged, train, test, scores, history)
        return run.finish(scores.results, history)


@torch.inference_mode()
def figures(
    model: JointVAE,
    train: data.ColoredSet,
    test: data.ColoredSet,
    scores: metrics.Evaluation,
    history: list[dict],
) -> None:
    """Draws all figures. What a figure does not vary is taken from the first test image's code."""
    plots.common_figures(OUTPUT_DIR, "Joint VAE", scores, history)
    codes, base, device = scores.test_codes, scores.test_codes[0], scores.test_codes.device
    demand_pictures, _ = scores.demand

    # The plane: the two continuous numbers on a grid, z2 upwards.
    ticks = torch.linspace(-4, 4, 17, device=device)
    grid = metrics.plane_codes(base, model.latents, ticks)
    pictures = model.decode(grid.flatten(0, 1)).unflatten(0, grid.shape[:2])
    plots.color_wheel(OUTPUT_DIR / "color_wheel.png", pictures, ticks, codes, test.hues, "Joint VAE")

    # All pairs of categories of two variables, with continuous numbers drawn anew for each cell.
    pair = ("v1", "v2") if N_VARIABLES > 1 else ("v1", "v1")  # the same variable twice: one row
    shown = min(N_CATEGORIES, 20)
    cells = category_grid(model, base, *pair)[: shown if N_VARIABLES > 1 else 1, :shown].flatten(0, 1)
    cells[:, :LATENT_DIM] = torch.randn(len(cells), LATENT_DIM, device=device) * Z_VARIANCE**0.5
    pictures = model.decode(cells).unflatten(0, (-1, shown))
    own = [base[model.latents[name]].argmax().item() for name in pair]
    title = f"Joint VAE: the categories of two variables, z drawn from N(0, {Z_VARIANCE:g}) for each cell"
    plots.categories(OUTPUT_DIR / "categories.png", pictures, pair, own, title)

    # In one picture: the wheel, and digits drawn on demand in every other hue.
    plots.finding(OUTPUT_DIR / "finding.png", codes, test.hues, demand_pictures[:, ::2])

    # Moving: ten digits on demand keep their categories while z circles once: codes (36, 10, W).
    red_digits = torch.tensor([(digit, 0.0) for digit in range(10)], device=device)
    angles = torch.arange(0, 360, 10)
    radius = codes[:, :LATENT_DIM].norm(dim=1).median()
    circle = metrics.find_codes(scores.train_codes, train, red_digits)[:, 0].repeat(len(angles), 1, 1)
    circle[:, :, 0] = radius * angles.to(device).deg2rad().cos()[:, None]
    if LATENT_DIM > 1:
        circle[:, :, 1] = radius * angles.to(device).deg2rad().sin()[:, None]
    frames = model.decode(circle.flatten(0, 1)).unflatten(0, (len(angles), 1, 10))
    titles = [f"Joint VAE, angle of z: {angle}° (the categories stay)" for angle in angles]
    rows, dial = [f"|z| = {radius:.1f}"], (codes, test.hues, circle[:, :1, :LATENT_DIM])
    plots.movie(OUTPUT_DIR / "hue_circle.gif", frames, titles, rows, data.class_names(), "digit", fps=6, dial=dial)


def category_grid(model: JointVAE, code: Tensor, down: str, across: str) -> Tensor:
    """Copies (K, K, W) of a code (W,), with every pair of two variables' categories."""
    k = model.n_categories
    grid = code.repeat(k, k, 1)
    grid[:, :, model.latents[down]] = torch.eye(k, device=code.device)[:, None]
    grid[:, :, model.latents[across]] = torch.eye(k, device=code.device)[None]
    return grid


if __name__ == "__main__":
    runs.command(main)
