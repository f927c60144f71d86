"""Discrete VAE: N categorical variables of K categories each, relaxed by Gumbel-softmax, on coloured MNIST.

The code is three choices of one in twenty. Digit and hue are not kept apart: some variables carry both.

    python vae_discrete.py       # edit the constants below, run again

Result, mean ± sd of seeds 0, 1, 2: test loss 242.1 ± 1.8 nats; digit and hue both right on demand 90.2 ± 5.2%, by swap
31.2 ± 12.5%. Seed 0 took 2.2 minutes on 2 cores of an AMD EPYC (Zen 5), torch 2.15.0.

Papers: Kingma & Welling, Auto-Encoding Variational Bayes, 2014 (the ELBO); Jang, Gu & Poole, Categorical
Reparameterization with Gumbel-Softmax, 2017; Maddison, Mnih & Teh, The Concrete Distribution, 2017 (the latent).
"""

import functools
import itertools
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

# Latents. More variables or categories carry more of the image, at a higher KL.
N_VARIABLES = 3  # categorical variables
N_CATEGORIES = 20  # categories of each

# Temperature of the relaxed samples: max(TAU_MIN, TAU_START * exp(-TAU_DECAY * step)), step counting all batches.
# Low: nearly one-hot, noisy gradients. High: smooth, and far from the one-hot codes used afterwards.
TAU_START = 1.0
TAU_DECAY = 0.0003  # per batch: 0.5 is reached in the fifth epoch
TAU_MIN = 0.5
HARD = False  # True: one-hot samples in the forward pass, the relaxed ones' gradient (straight-through)

# Training.
EPOCHS = 30
BATCH_SIZE = 120  # images
LEARNING_RATE = 0.001  # Adam's
# True: pictures start out as the mean training image (see start_at). False: from grey, as torch starts them; many seeds
# then learn nothing for some epochs, those that do not end up a little better, most of all by swap (README.md).
START_AT_MEAN = False
SEED = 0  # of weights, order of images and samples
DEVICE = "auto"  # "auto" takes CUDA, then Apple's MPS, then the CPU; or name one: "cuda", "mps", "cpu"
# For torch.set_float32_matmul_precision, in training. "medium" halves the time of the matrix products on an AMD Zen 5,
# in float32 all the same; a GPU or a CPU with AMX may round their factors for it: see "matrix products" in the log.
# "highest": never.
MATMUL_PRECISION = "medium"
RESUME = True  # go on with an unfinished run of the same constants; False: always start afresh

OUTPUT_DIR = Path(__file__).parent / "outputs" / "vae_discrete"

# Shapes below: B batch, N = N_VARIABLES, K = N_CATEGORIES.


class DiscreteVAE(nn.Module):
    """The encoder gives the logits of N variables; the decoder sees one sample of each, flattened to N·K numbers."""

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
            nn.Unflatten(1, (3, 28, 28)),  # pixel logits: the sigmoid is in the loss and in decode()
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
        """Images (B, 3, 28, 28) → their deterministic codes (B, N·K): the likeliest category of each variable."""
        return F.one_hot(self.encode(x).argmax(-1), self.n_categories).flatten(1).float()

    def decode(self, code: Tensor) -> Tensor:
        """Codes (B, N·K) → images (B, 3, 28, 28) in [0, 1]."""
        return self.decoder(code).sigmoid()


# Same as vae_joint.categorical_kl.
def categorical_kl(log_q: Tensor) -> Tensor:
    """KL of each variable to the uniform distribution over its K categories in nats: (B, N, K) → (B, N).

    log K - H(q), with H(q) = -sum q log q. Jang, Gu & Poole 2017.
    """
    return math.log(log_q.shape[-1]) + (log_q.exp() * log_q).sum(-1)


def start_at(model: DiscreteVAE, image: Tensor) -> None:
    """Sets the last layer's biases to the logits of an image (3, 28, 28) in [0, 1]: pictures start out near it.

    With torch's own biases they start out grey, and what the first steps learn is to darken all pixels of all images
    alike. The encoder learns it, too, and in some seeds comes to give every image the same categories: the softmax is
    saturated then, and next to no gradient leads out.
    """
    with torch.no_grad():
        model.decoder[4].bias.copy_(image.clamp(0.001, 0.999).logit().flatten())  # finite for always black pixels


def elbo_terms(model: DiscreteVAE, x: Tensor, tau: float, hard: bool = False) -> dict[str, Tensor]:
    """The terms of -ELBO, each summed over the batch, in nats: one scale for both, so that they can be added.

    Reconstruction is the binary cross-entropy of the pixels, fractional ones included.
    """
    logits, log_q = model(x, tau, hard)
    return {
        "reconstruction": F.binary_cross_entropy_with_logits(logits, x, reduction="sum"),
        "kl_v": categorical_kl(log_q).sum(),
    }


# Same as vae_joint.category_grid.
def category_grid(model: DiscreteVAE, code: Tensor, down: str, across: str) -> Tensor:
    """Copies of a code (W,) with every pair of categories of two of its variables: (K, K, W), W the width of a code."""
    k = model.n_categories
    grid = code.repeat(k, k, 1)
    grid[:, :, model.latents[down]] = torch.eye(k, device=code.device)[:, None]
    grid[:, :, model.latents[across]] = torch.eye(k, device=code.device)[None]
    return grid


def load_model(path: Path) -> DiscreteVAE:
    """The trained network from a model.pt that this script wrote, on the CPU, in eval mode."""
    return runs.load_model(path, DiscreteVAE)


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
    model = DiscreteVAE(N_VARIABLES, N_CATEGORIES).to(device)
    if START_AT_MEAN:
        start_at(model, data.mean_image(train))
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=True)  # fused: the same, in one pass
    history = runs.resume(OUTPUT_DIR, constants, model=model, optimizer=optimizer)  # one row an epoch
    seconds_before = sum(row["seconds"] for row in history)
    step = len(history) * math.ceil(len(train.images) / BATCH_SIZE)
    last_loss = math.nan

    torch.set_float32_matmul_precision(MATMUL_PRECISION)  # until the scores: in the test pass of each epoch, too
    while len(history) < EPOCHS:
        epoch, epoch_started = len(history) + 1, time.perf_counter()
        sums = dict.fromkeys(("reconstruction", "kl_v"), 0.0)
        batches = torch.randperm(len(train.images)).to(device).split(BATCH_SIZE)
        for index in tqdm(batches, f"epoch {epoch}/{EPOCHS}", leave=False, disable=None):
            tau = max(TAU_MIN, TAU_START * math.exp(-TAU_DECAY * step))
            x = data.colorize(train.images[index], train.colors[index])  # (B, 3, 28, 28)
            terms = elbo_terms(model, x, tau, HARD)
            loss = sum(terms.values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

            runs.check_finite(loss.item(), epoch, step, last_loss)
            last_loss = loss.item()
            sums = {name: sums[name] + term.item() for name, term in terms.items()}
            step += 1

        row = {f"train_{name}": value / len(train.images) for name, value in sums.items()}
        test_terms = metrics.mean_terms(functools.partial(elbo_terms, model, tau=tau, hard=HARD), test)
        runs.check_finite(sum(test_terms.values()), epoch, step, last_loss)
        row |= {f"test_{name}": value for name, value in test_terms.items()}
        history.append(row | {"tau": tau, "seconds": time.perf_counter() - epoch_started})
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
        **metrics.elbo(functools.partial(elbo_terms, model, tau=history[-1]["tau"]), test),
        **metrics.reconstruction(model, test_codes, test),
        **demand,
        **metrics.control_by_swap(model, test_codes, color_latents, test),
        "color_latents": color_latents,
        "latents": metrics.latent_usage(model, test_codes, test),  # warns of a dead one
    }

    # Figures. `base` is the code of the first test image: what a figure does not vary stays as it is there.
    with torch.inference_mode():
        name, base = "Discrete VAE", test_codes[0]
        plots.loss_curves(OUTPUT_DIR / "loss.png", history, floors)
        plots.latent_usage(OUTPUT_DIR / "latent_usage.png", results["latents"], color_latents, name)
        plots.reconstructions(OUTPUT_DIR / "reconstructions.png", *metrics.reconstructed(model, test), results, name)
        plots.control_on_demand(OUTPUT_DIR / "control_on_demand.png", demand_pictures, demand_right, results, name)
        swaps = metrics.swap_examples(model, test_codes, color_latents, test)
        plots.control_by_swap(OUTPUT_DIR / "control_by_swap.png", *swaps, results, name)

        # All pairs of categories of two variables.
        variables = [f"v{i + 1}" for i in range(min(N_VARIABLES, 3))]
        pairs = list(itertools.combinations(variables, 2)) or [("v1", "v1")]
        grids, shown = [], min(N_CATEGORIES, 20)
        for down, across in pairs:
            codes = category_grid(model, base, down, across)[: shown if down != across else 1, :shown].flatten(0, 1)
            grids.append(model.decode(codes).unflatten(0, (-1, shown)))
        title = "Discrete VAE: pairs of variables, the rest of the code held at the first test image's"
        plots.category_grids(OUTPUT_DIR / "categories.png", grids, pairs, title)

        # Moving: the first test image of each digit; in each row one variable steps through its categories.
        firsts = test_codes[metrics.first_of_each_digit(test.digits, 1)[:, 0]]  # (10, N * K)
        codes = firsts.repeat(shown, len(variables), 1, 1)  # (frame, row, 10, N * K)
        for row, variable in enumerate(variables):
            steps = torch.eye(N_CATEGORIES, device=device)[:shown, None]  # (frame, 1, K)
            codes[:, row, :, model.latents[variable]] = steps.expand(-1, 10, -1)
        frames = model.decode(codes.flatten(0, 2)).unflatten(0, (shown, len(variables), 10))
        titles = [f"Discrete VAE: category {k + 1} of {N_CATEGORIES}, in one variable a row" for k in range(shown)]
        plots.movie(
            OUTPUT_DIR / "steps.gif", frames, titles, variables, data.class_names(), "first test image of digit", fps=2
        )

    runs.save_model(OUTPUT_DIR / "model.pt", model, N_VARIABLES, N_CATEGORIES)
    runs.finish(OUTPUT_DIR, constants, seconds_before + time.perf_counter() - started, results, history)
    return results


if __name__ == "__main__":
    main()
