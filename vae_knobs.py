"""Knob VAE: a joint VAE whose latents are digit, hue, slant, width and weight, without labels.

A contrastive loss warms the encoder up, so that an image and its deformed copy in another hue get
similar codes. Then five terms train the whole model. 1. -ELBO. 2. Clustering (alone at first): the
digit latent is sure, the same for a copy, and uses all categories. 3. Equivariance: known changes
of slant, width and weight move code and picture by as much, which gives them units. 4. The encoder
reads the digit that the decoder was given. 5. Centring: each category's mean styles are 0.

    python vae_knobs.py          # edit the constants below, run again

Result, mean ± sd of seeds 0 to 4: test loss 203.1 ± 0.2 nats; digit accuracy 98.6 ± 0.1%; digit
and hue on demand 99.9 ± 0.1%, by swap 98.3 ± 0.2%, by knob 99.6 ± 0.1%. 13 minutes on one core.

Papers: Chen et al., SimCLR, 2020 (contrastive_loss); Hu et al., IMSAT, 2017, and Ji et al., IIC,
2019 (clustering_loss); Hinton et al., Transforming Auto-encoders, 2011 (equivariance_terms); Chen
et al., InfoGAN, 2016 (heard_term). As far as we know, only their combination and the units are new.
"""

import functools
import math
from collections.abc import Callable
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
from vae_joint import JointVAE, categorical_kl, elbo_terms, gaussian_kl

# Latents: hue (two Gaussians), slant, width, weight (one each), digit and styles (categorical).
N_VARIABLES = 3  # categorical variables: the digit, then styles; more: better pictures, a higher KL
N_CATEGORIES = 10  # categories of each
UNITS = (14.0, 15.0, 0.35)  # degrees, % (100 × log), pixels: units of slant, width, weight

# Temperature of the relaxed samples: max(TAU_MIN, TAU_START * exp(-TAU_DECAY * step)).
TAU_START = 5.0  # high at first, so that the Gaussians and not the categories take the hue
TAU_DECAY = 0.002  # per batch: tau reaches 0.5 in the fifth epoch
TAU_MIN = 0.5  # lower: samples nearer to one-hot codes, noisier gradients

# Weights in the loss, beside 1 for -ELBO. 0 turns a term off.
CLUSTER_WEIGHT = 20.0  # more: the digit's category is surer, pictures are worse
AGREEMENT_WEIGHT = 5.0  # of image and copy, within the clustering; too large: all q stay uniform
BALANCE_WEIGHT = 4.0  # of filled categories, within the clustering; too small: digits share one
CODE_WEIGHT = 4.0  # of the codes' equivariance, at first, falling to 0; it names the latents
PICTURE_WEIGHT = 0.5  # of the pictures' equivariance; more: units are more exact, pictures worse
HEARD_WEIGHT = 20.0  # more: the digit that is set is drawn more clearly
CENTRE_WEIGHT = 20.0  # per squared unit; less: slant, width and weight also tell digits apart

# Deformations of the copies, uniform between ± their bounds. Only MAX_MOVE is of known moves.
MAX_MOVE = 1.4  # units of slant, width and weight; beyond it a knob's unit is extrapolated
MAX_SHIFT = 2.25  # pixels along each axis
MAX_ROTATION = 5.0  # degrees
MAX_SCALE = 0.1  # share by which the size changes
ELASTIC = 1.2  # pixels: standard deviation of random displacements (data.deform)
START_ELASTIC = 0.7  # the same in the warm-up, where more of it mixes digits

# Training.
WARM_UP_EPOCHS = (4, 2)  # on the contrastive loss, then on the clustering; (8, 2): + 0.2% accuracy
TEMPERATURE = 0.2  # of the contrastive loss; lower: the most similar other pictures count more
EPOCHS = 24  # after the warm-up; the learning rate falls linearly to 0 in their second half
BATCH_SIZE = 250  # images
LEARNING_RATE = 0.0015  # Adam's
SEED = 0  # seeds the weights, the order of the images, the deformations and the samples
DEVICE = "auto"  # a CUDA or ROCm GPU if there is one, else the CPU; or "cuda", "mps", "cpu"
PRECISION = "auto"  # in training: "auto" is "bfloat16" on a CPU that is fast at it, else "float32"
RESUME = True  # go on with an unfinished run of the same code and constants; False: start over

OUTPUT_DIR = runs.ROOT / "outputs" / "vae_knobs"
# Shapes below: B batch, N = N_VARIABLES, K = N_CATEGORIES. A code is (B, 5 + N·K).


class KnobVAE(JointVAE):
    """A joint VAE with named latents; `units` (3,) of slant, width, weight: degrees, %, pixels."""

    knobs = ("slant", "width", "weight")

    def __init__(self, n_variables: int, n_categories: int, units: tuple[float, float, float] = (1.0, 1.0, 1.0)):
        super().__init__(5, n_variables, n_categories)
        self.register_buffer("units", torch.tensor(units))  # saved with the weights
        self.categorical = ["digit", *(f"style{i}" for i in range(1, n_variables))]  # names

    @property
    def latents(self) -> dict[str, slice]:
        """Name → columns of a code."""
        ends = [2, 3, 4, 5, *(5 + self.n_categories * (i + 1) for i in range(self.n_variables))]
        return dict(zip(["hue", *self.knobs, *self.categorical], map(slice, [0, *ends], ends), strict=False))

    def kl(self, x: Tensor) -> Tensor:
        """KL of each latent in nats, (B, 4 + N): that of the hue is of both its numbers."""
        parts = super().kl(x)
        return torch.cat([parts[:, :2].sum(1, keepdim=True), parts[:, 2:]], 1)

    def turned(self, code: Tensor, knob: str, step: float) -> Tensor:
        """Codes (B, 5 + N·K) moved in slant (degrees), width (10: × 1.1, -10: / 1.1), weight (pixels)."""
        move = math.copysign(100 * math.log1p(abs(step) / 100), step) if knob == "width" else step
        code = code.clone()
        code[:, self.latents[knob]] += move / self.units[self.knobs.index(knob)]
        return code


def known_copies(
    train: data.ColoredSet, index: Tensor, bounds: Tensor, deform: Callable, elastic: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Images (B,) with slant, width and weight moved, then deformed, at random, in other hues.

    Returns the copies and the pictures only moved, both (B, 3, 28, 28), and the moves (B, 3) as
    shares of their bounds (3,): shear, log width, and weight in pixels.
    """
    share = torch.rand(len(index), 3, device=index.device) * 2 - 1
    moved = data.restyle(train.images[index][:, None] / 255, *(share * bounds).unbind(1))
    colors = train.colors[index].roll(1, 0)[:, :, None, None]  # of the image before
    return deform(moved, elastic=elastic) * colors, moved * colors, share


def contrastive_loss(z: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of matching images and copies by z (2B, 64), nats, summed. Chen et al. 2020."""
    a, b = F.normalize(z.float(), dim=1).chunk(2)
    similarity, own = a @ b.T / temperature, torch.arange(len(a), device=z.device)
    return sum(F.cross_entropy(s, own, reduction="sum") for s in (similarity, similarity.T)) / 2


def clustering_loss(log_q: Tensor, log_q_copy: Tensor, agreement: float, balance: float) -> Tensor:
    """Makes the first variable the digit, from its log q (B, K) for images and their copies.

    Nats, summed: agreement · KL(q ‖ q'), with q held fixed, + the entropy of each q - balance · the
    entropy of their mean, which is high when all categories are in use. Hu et al. 2017.
    """
    q, log_mean = log_q.exp(), log_q.logsumexp(0) - math.log(len(log_q))  # finite if q underflows
    kl, entropy = (q.detach() * (log_q.detach() - log_q_copy)).sum(), -(q * log_q).sum()
    return agreement * kl + entropy + balance * len(q) * (log_mean.exp() * log_mean).sum()


def equivariance_terms(
    model: KnobVAE, code: Tensor, mu: Tensor, mu_copy: Tensor, x: Tensor, moved: Tensor
) -> dict[str, Tensor]:
    """Errors of known moves (B, 3) of slant, width and weight, in units; sums over B.

    moved_code: squared error of mu' - mu, means (B, 5) of copy and image, as the move. It says
    which latent is what, but reads too short a move, as the copy's other deformations are noise.
    moved_picture: -log p(x | code moved), nats, of the first B' codes; x (B', 3, 28, 28) are the
    images only moved, in the colour of the image before, as the codes are. It trains the decoder;
    the encoder follows by -ELBO. Hinton, Krizhevsky & Wang 2011.
    """
    turned = torch.cat([code[:, :2].roll(1, 0), code[:, 2:5] + moved, code[:, 5:]], 1)[: len(x)].detach()
    return {
        "moved_code": (mu_copy[:, 2:5] - mu[:, 2:5] - moved).square().sum(),
        "moved_picture": F.binary_cross_entropy_with_logits(model.decoder(turned).float(), x, reduction="sum"),
    }


def heard_term(model: KnobVAE, code: Tensor) -> Tensor:
    """-log q(c | picture), nats, summed: does the encoder read what the decoder was told?

    Codes (B, 5 + N·K) get a random category c and another image's slant, width and weight. Trains
    only the decoder. Minus InfoGAN's bound on the information of c: Chen et al. 2016.
    """
    c, turned = torch.randint(model.n_categories, (len(code),), device=code.device), code.detach().clone()
    turned[:, 2:5] = turned[:, 2:5].roll(1, 0)
    turned[:, model.latents["digit"]] = F.one_hot(c, model.n_categories).to(code)
    reader = nn.ModuleList([model.encoder, model.categorical_head]).requires_grad_(False)
    _, _, log_q = model.encode(model.decode(turned))
    reader.requires_grad_(True)  # the graph is recorded: its gradients leave the encoder out
    return F.nll_loss(log_q[:, 0], c, reduction="sum")


def centring_term(log_q: Tensor, styles: Tensor) -> Tensor:
    """Squared means of styles (B, 3) in each category of log q (B, K), averaged, times B.

    As the square of a mean also holds its noise, two half batches' means are multiplied.
    """
    halves = zip(log_q.detach().exp().chunk(2), styles.chunk(2), strict=True)
    one, other = (q.T @ style / (q.sum(0)[:, None] + 1) for q, style in halves)
    return len(styles) / log_q.shape[1] * (one * other).sum()


def warm_up(
    model: KnobVAE, train: data.ColoredSet, run: runs.Run, copies: Callable, clustering: Callable,
    epochs: tuple[int, int], batch_size: int, learning_rate: float, temperature: float,
) -> None:  # fmt: skip
    """Trains the encoder (no loss here reaches the rest): contrastive loss, then clustering."""
    projection = nn.Linear(model.gaussian_head.in_features, 64).to(run.device)
    optimizer = torch.optim.Adam([*model.parameters(), *projection.parameters()], learning_rate, fused=True)
    for epoch in range(1, sum(epochs) + 1):
        batches, total = torch.randperm(len(train)).to(run.device).split(batch_size), 0.0
        for index in tqdm(batches, f"warm-up {epoch}/{sum(epochs)}", leave=False, disable=None):
            with run.autocast():
                x = torch.cat([train.colored(index), copies(index)[0]])
                if epoch <= epochs[0]:
                    loss = contrastive_loss(projection(model.encoder(x)), temperature)
                else:
                    loss = clustering(*model.encode(x)[2][:, 0].chunk(2))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        print(f"warm-up {epoch}/{sum(epochs)} | loss {total / len(train):.3f} | {run.seconds():.0f} s", flush=True)


def load_model(path: Path) -> KnobVAE:
    """The trained network from a model.pt that this script wrote, on the CPU, in eval mode."""
    return runs.load_model(path, KnobVAE)


def main() -> dict:
    """Trains, scores and draws. Returns the results, which are also written to metrics.json."""
    with runs.start(OUTPUT_DIR, globals()) as run:
        train, test = data.colored_set(train=True, device=run.device), data.colored_set(train=False, device=run.device)
        run.code |= {"judge": judge.fingerprint(judge.load(run.device)), "images": len(train)}

        torch.manual_seed(SEED)
        model = KnobVAE(N_VARIABLES, N_CATEGORIES, UNITS).to(run.device)
        slant, width, weight = (MAX_MOVE * unit for unit in UNITS)
        bounds = torch.tensor([math.tan(math.radians(slant)), width / 100, weight], device=run.device)
        deform = functools.partial(data.deform, shift=MAX_SHIFT, rotation=MAX_ROTATION, scale=MAX_SCALE)
        copies = functools.partial(known_copies, train, bounds=bounds, deform=deform)
        clustering = functools.partial(clustering_loss, agreement=AGREEMENT_WEIGHT, balance=BALANCE_WEIGHT)
        optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=True)  # fused: faster
        history = run.resume(model=model, optimizer=optimizer)  # a row for each finished epoch
        if not history:
            start = functools.partial(copies, elastic=START_ELASTIC)
            warm_up(model, train, run, start, clustering, WARM_UP_EPOCHS, BATCH_SIZE, LEARNING_RATE, TEMPERATURE)
            nn.init.constant_(model.decoder[-2].bias, data.mean_level(train).logit().item())
        n_batches = math.ceil(len(train) / BATCH_SIZE)
        step, steps = len(history) * n_batches, EPOCHS * n_batches

        for epoch in range(len(history) + 1, EPOCHS + 1):
            seen = []  # the terms of each batch
            batches = torch.randperm(len(train)).to(run.device).split(BATCH_SIZE)
            for index in tqdm(batches, f"epoch {epoch}/{EPOCHS}", leave=False, disable=None):
                tau = max(TAU_MIN, TAU_START * math.exp(-TAU_DECAY * step))
                left = 1 - step / steps  # share of the run
                optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1, 2 * left)
                x, half = train.colored(index), len(index) // 2  # half will do for moved pictures
                copy, moved, share = copies(index, elastic=ELASTIC)
                with run.autocast():
                    mu, logvar, log_q = model.encode(torch.cat([x, copy]))  # one pass for both
                    (mu, mu_copy), logvar, (log_q, log_q_copy) = mu.chunk(2), logvar[: len(x)], log_q.chunk(2)
                    code = model.sample(mu, logvar, log_q, tau)
                    logits = model.decoder(code).float()
                    terms = {  # -ELBO is the sum of the first three
                        "reconstruction": F.binary_cross_entropy_with_logits(logits, x, reduction="sum"),
                        "kl_z": gaussian_kl(mu, logvar).sum(),
                        "kl_v": categorical_kl(log_q).sum(),
                        "clustering": clustering(log_q[:, 0], log_q_copy[:, 0]),
                        **equivariance_terms(model, code, mu, mu_copy, moved[:half], share * MAX_MOVE),
                        "heard": heard_term(model, code),
                        "centring": centring_term(log_q[:, 0], mu[:, 2:5]),
                    }
                loss = terms["reconstruction"] + terms["kl_z"] + terms["kl_v"] + CLUSTER_WEIGHT * terms["clustering"]
                loss = loss + CODE_WEIGHT * left * terms["moved_code"] + PICTURE_WEIGHT * terms["moved_picture"]
                loss = loss + HEARD_WEIGHT * terms["heard"] + CENTRE_WEIGHT * terms["centring"]
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

                seen.append({name: term.detach() for name, term in terms.items()})
                step += 1
            row = metrics.epoch_row(seen, functools.partial(elbo_terms, model, tau=tau), model, train, test)
            history.append({"epoch": epoch, "seconds": run.seconds(), "tau": tau, **row})
            run.checkpoint(history)  # with the state of what resume() was given
            metrics.print_epoch(history, EPOCHS)

        # Only from here on are labels used. They name and score what was learned.
        run.end_training()
        runs.save_model(OUTPUT_DIR / "model.pt", model.half(), N_VARIABLES, N_CATEGORIES)  # 5.4 MB
        model.float()  # scored as saved
        scores = metrics.evaluate(model, functools.partial(elbo_terms, model, tau=history[-1]["tau"]), train, test)
        scores.results.update(metrics.knob_scores(model, scores, train, test))
        figures(model, train, test, scores, history)
        return run.finish(scores.results, history)


@torch.inference_mode()
def figures(
    model: KnobVAE, train: data.ColoredSet, test: data.ColoredSet, scores: metrics.Evaluation, history: list[dict]
) -> None:
    """Draws all figures. Whatever a figure does not vary stays as in the codes of test images."""
    name, results, codes = "Knob VAE", scores.results, scores.test_codes
    plots.common_figures(OUTPUT_DIR, name, scores, history)
    title = f"{name}: the digit variable is right for {results['digit_accuracy']:.1%} of the test images"
    plots.confusion(OUTPUT_DIR / "confusion.png", results["category_counts"], results["category_digits"], title)
    curves = metrics.knob_curves(model, codes[:1000])
    plots.asked_and_measured(OUTPUT_DIR / "units.png", curves, f"{name}: each knob moved from its own value")

    rows = metrics.knob_rows(model, scores, train, test)  # five test images, one knob each
    slant, width, weight = (MAX_MOVE * unit for unit in UNITS)
    trained = f"in training by up to {slant:.0f}°, {math.expm1(width / 100):.0%}, {weight:.1f} px"
    plots.knob_rows(OUTPUT_DIR / "finding.png", rows, f"{name}: one knob moved, all else kept ({trained})")
    frames, titles, digits = metrics.knob_film(model, scores, train)
    plots.movie(OUTPUT_DIR / "knobs.gif", frames, titles, [""], digits, "digit", fps=8)


if __name__ == "__main__":
    runs.command(main)
