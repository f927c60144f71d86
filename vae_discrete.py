"""Discrete VAE: N categorical variables relaxed by Gumbel-softmax, on coloured MNIST.

The code is three choices out of twenty. Digit and hue are not kept apart, as some variables carry
both.

    python vae_discrete.py       # edit the constants below, run again

Result, mean ± sd of seeds 0 to 4: test loss 239.2 ± 2.0 nats; digit and hue both right on demand
95.2 ± 1.4%, by swap 29.3 ± 10.3%. The fastest run took 8 minutes on one core of a server
of 2022.

Papers: Kingma & Welling, Auto-Encoding Variational Bayes, 2014 (the ELBO); Jang, Gu & Poole,
Categorical Reparameterization with Gumbel-Softmax, 2017; Maddison, Mnih & Teh, The Concrete
Distribution, 2017 (the latent); Polyak & Juditsky, Stochastic Approximation by Averaging, 1992
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

# Latents. More variables or categories carry more of the image, at a higher KL.
N_VARIABLES = 3  # categorical variables
N_CATEGORIES = 20  # categories of each

# Temperature of the relaxed samples: max(TAU_MIN, TAU_START * exp(-TAU_DECAY * step)).
TAU_START = 1.0  # at the first batch; higher: smoother samples, farther from one-hot codes
TAU_DECAY = 0.0003  # per batch, counted over all epochs; tau reaches 0.5 in the fifth epoch
TAU_MIN = 0.5  # lower: samples nearer to one-hot codes, noisier gradients
HARD = False  # True: one-hot samples with the gradient of the relaxed ones (straight-through)

# Training. The average of the weights is what is scored, shown and saved.
EPOCHS = 30
BATCH_SIZE = 120  # images
LEARNING_RATE = 0.001  # Adam's
EMA_DECAY = 0.99  # of the average, per ten steps; higher averages over more steps; 0: last weights
SEED = 0  # seeds the weights, the order of the images and the samples
DEVICE = "auto"  # a CUDA or ROCm GPU if there is one, else the CPU; or "cuda", "mps", "cpu"
RESUME = True  # go on with an unfinished run of the same code and constants; False: start over

OUTPUT_DIR = runs.ROOT / "outputs" / "vae_discrete"

# Shapes below: B batch, N = N_VARIABLES, K = N_CATEGORIES.


class DiscreteVAE(nn.Module):
    """The encoder gives logits of N variables. The decoder sees one sample of each, (B, N·K)."""

    def __init__(self, n_variables: int, n_categories: int):
        super().__init__()
        self.n_variables, self.n_categories = n_variables, n_categories
        self.encoder = nn.Sequential(
            nn.Flatten(),
            nn.Linear(3 * 28 * 28, 512),
            nn.ReLU(),
            nn.Linear(512, 256),
            nn.ReLU(),
        )
        self.categorical_head = nn.Linear(256, n_variables * n_categories)  # logits: no activation
        self.decoder = nn.Sequential(
            nn.Linear(n_variables * n_categories, 256),
            nn.ReLU(),
            nn.Linear(256, 512),
            nn.ReLU(),
            nn.Linear(512, 3 * 28 * 28),
            nn.Unflatten(1, (3, 28, 28)),  # pixel logits: the loss and decode() apply the sigmoid
        )

    def encode(self, x: Tensor) -> Tensor:
        """Images (B, 3, 28, 28) → log q (B, N, K)."""
        logits = self.categorical_head(self.encoder(x))
        logits = logits.view(-1, self.n_variables, self.n_categories)
        return logits.log_softmax(-1)  # over the K categories of each variable

    def forward(self, x: Tensor, tau: float, hard: bool = False) -> tuple[Tensor, Tensor]:
        """Images (B, 3, 28, 28) → pixel logits of their reconstruction, log q (B, N, K)."""
        log_q = self.encode(x)
        v = F.gumbel_softmax(log_q, tau, hard)  # (B, N, K)
        return self.decoder(v.flatten(1)), log_q

    def kl(self, x: Tensor) -> Tensor:
        """KL of each variable in nats, (B, N)."""
        return categorical_kl(self.encode(x))

    @property
    def latents(self) -> dict[str, slice]:
        """Name → columns of a code, one entry for each variable."""
        k = self.n_categories
        return {f"v{i + 1}": slice(i * k, (i + 1) * k) for i in range(self.n_variables)}

    def code(self, x: Tensor) -> Tensor:
        """Images (B, 3, 28, 28) → their codes (B, N·K): each variable's likeliest category."""
        return F.one_hot(self.encode(x).argmax(-1), self.n_categories).flatten(1).float()

    def decode(self, code: Tensor) -> Tensor:
        """Codes (B, N·K) → images (B, 3, 28, 28) in [0, 1]."""
        return self.decoder(code).sigmoid()


# Same as vae_joint.categorical_kl.
def categorical_kl(log_q: Tensor) -> Tensor:
    """KL of each variable to uniform over its K categories in nats: (B, N, K) → (B, N).

    log K - H(q), with H(q) = -sum q log q. Jang, Gu & Poole 2017.
    """
    return math.log(log_q.shape[-1]) + (log_q.exp() * log_q).sum(-1)


def elbo_terms(model: DiscreteVAE, x: Tensor, tau: float, hard: bool = False) -> dict[str, Tensor]:
    """The terms of -ELBO in nats, summed over the batch; their sum is -ELBO. Kingma & Welling 2014.

    -ELBO = -E[log p(x | v)] + KL(q(v | x) ‖ p(v)). The first term is the binary cross-entropy of
    the pixels. It cannot reach 0, because pixels at a stroke's edge are neither 0 nor 1.
    """
    logits, log_q = model(x, tau, hard)
    return {
        "reconstruction": F.binary_cross_entropy_with_logits(logits, x, reduction="sum"),
        "kl_v": categorical_kl(log_q).sum(),
    }


def load_model(path: Path) -> DiscreteVAE:
    """The trained network from a model.pt that this script wrote, on the CPU, in eval mode."""
    return runs.load_model(path, DiscreteVAE)


def main() -> dict:
    """Trains, scores and draws. Returns the results, which are also written to metrics.json."""
    with runs.start(OUTPUT_DIR, globals()) as run:
        train, test = data.colored_set(train=True, device=run.device), data.colored_set(train=False, device=run.device)
        run.code |= {"judge": judge.fingerprint(judge.load(run.device)), "images": len(train)}

        torch.manual_seed(SEED)
        model = DiscreteVAE(N_VARIABLES, N_CATEGORIES).to(run.device)
        # The last bias starts pictures at the mean grey level. With torch's, the first steps only
        # darken them all; in half of the seeds the code then carries nothing.
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
                terms = elbo_terms(model, train.colored(index), tau, HARD)
                loss = terms["reconstruction"] + terms["kl_v"]
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

        # Only from here on are labels used. They score what was learned.
        run.end_training()
        runs.save_model(OUTPUT_DIR / "model.pt", averaged, N_VARIABLES, N_CATEGORIES)
        terms_of = partial(elbo_terms, averaged, tau=history[-1]["tau"])
        scores = metrics.evaluate(averaged, terms_of, train, test)
        figures(averaged, test, scores, history)
        return run.finish(scores.results, history)


@torch.inference_mode()
def figures(model: DiscreteVAE, test: data.ColoredSet, scores: metrics.Evaluation, history: list[dict]) -> None:
    """Draws all figures. What a figure does not vary is taken from the first test image's code."""
    plots.common_figures(OUTPUT_DIR, "Discrete VAE", scores, history)
    codes, base, device = scores.test_codes, scores.test_codes[0], scores.test_codes.device

    # All pairs of categories of two variables.
    pair = ("v1", "v2") if N_VARIABLES > 1 else ("v1", "v1")  # the same variable twice: one row
    shown = min(N_CATEGORIES, 20)
    cells = category_grid(model, base, *pair)[: shown if N_VARIABLES > 1 else 1, :shown].flatten(0, 1)
    pictures = model.decode(cells).unflatten(0, (-1, shown))
    own = [base[model.latents[name]].argmax().item() for name in pair]
    title = "Discrete VAE: the categories of two variables, the rest of the code as in the first test image"
    plots.categories(OUTPUT_DIR / "categories.png", pictures, pair, own, title)

    # Moving: the first test image of each digit; in each row below it, one variable is stepped.
    variables = [f"v{i + 1}" for i in range(min(N_VARIABLES, 3))]
    index = metrics.first_of_each_digit(test.digits, 1)[:, 0]
    steps = codes[index].repeat(shown, len(variables), 1, 1)  # (frame, row, 10, N·K)
    for row, variable in enumerate(variables):
        one_hot = torch.eye(N_CATEGORIES, device=device)[:shown, None]  # (frame, 1, K)
        steps[:, row, :, model.latents[variable]] = one_hot.expand(-1, 10, -1)
    frames = model.decode(steps.flatten(0, 2)).unflatten(0, (shown, len(variables), 10))
    frames = torch.cat([test.colored(index).expand(shown, 1, -1, -1, -1, -1), frames], 1)  # fixed
    titles = [f"Discrete VAE: in each row one variable set to category {k + 1} of {N_CATEGORIES}" for k in range(shown)]
    rows = ["test image", *variables]
    plots.movie(OUTPUT_DIR / "steps.gif", frames, titles, rows, data.class_names(), "digit", fps=2)


# Same as vae_joint.category_grid.
def category_grid(model: DiscreteVAE, code: Tensor, down: str, across: str) -> Tensor:
    """Copies (K, K, W) of a code (W,), with every pair of two variables' categories."""
    k = model.n_categories
    grid = code.repeat(k, k, 1)
    grid[:, :, model.latents[down]] = torch.eye(k, device=code.device)[:, None]
    grid[:, :, model.latents[across]] = torch.eye(k, device=code.device)[None]
    return grid


if __name__ == "__main__":
    runs.command(main)
