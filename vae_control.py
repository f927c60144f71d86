"""Control VAE: a joint VAE whose first variable is the digit, learned without labels, on coloured MNIST.

Two terms are added to the joint model's negative ELBO. The first rewards a first variable that stays the same when the
image is slightly deformed and recoloured, that is certain, and that uses all of its categories. The second rewards a
decoder that draws what this variable says. Its ten categories become the ten digits, and setting it chooses the digit,
like a knob. The two continuous numbers still hold the hue. Before all this, several encoders alone are trained on the
first term. One goes on, trained on the categories that explain all of them best, after votes among similar images.

    python vae_control.py        # edit the constants below, run again

Result, mean ± sd of seeds 0 to 4: test loss 215.0 ± 0.3 nats; digit and hue both right on demand 100.0 ± 0.0%, by swap
97.9 ± 0.2%, by knob 99.5 ± 0.1%; the first variable is the digit of 98.0 ± 0.1% of the test images. Seed 0 took 6.2
minutes on one core of an AMD EPYC (Zen 5), torch 2.14.1.

Papers: Kingma & Welling, Auto-Encoding Variational Bayes, 2014 (the ELBO, the Gaussian latent);
Jang, Gu & Poole, Categorical Reparameterization with Gumbel-Softmax, 2017; Maddison, Mnih & Teh, The Concrete
Distribution, 2017 (the categorical latent); Hu et al., Learning Discrete Representations via Information Maximizing
Self-Augmented Training, 2017, and Ji et al., Invariant Information Clustering, 2019 (the first term); Simard,
Steinkraus & Platt, Best Practices for Convolutional Neural Networks, 2003 (elastic deformation); Dawid & Skene,
Maximum Likelihood Estimation of Observer Error-Rates Using the EM Algorithm, 1979 (the consensus of the starts);
Raghavan, Albert & Kumara, Near Linear Time Algorithm to Detect Community Structures in Large-Scale Networks, 2007 (the
votes of the neighbours); Chen et al., InfoGAN, 2016 (the second term).
"""

import functools
import math
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

# Latents. The first variable becomes the digit: ten categories, one for each. The others carry its style.
LATENT_DIM = 2  # continuous numbers, one Gaussian each
N_VARIABLES = 4  # categorical variables
N_CATEGORIES = 10  # categories of each

# Temperature of the relaxed samples: max(TAU_MIN, TAU_START * exp(-TAU_DECAY * step)), step counting batches
# after the start. Low: nearly one-hot samples, noisy gradients. High: smooth samples, far from the one-hot codes used
# afterwards. A high first value helps the continuous numbers to win the hue: smooth samples hold it badly.
TAU_START = 5.0
TAU_DECAY = 0.002  # per batch: tau is 0.5 from the sixth epoch on
TAU_MIN = 0.5
HARD = False  # True: one-hot samples in the forward pass, with the gradient of the relaxed ones (straight-through)

# The loss, with q the first variable's distribution for an image, held fixed in the KL, q' for its deformed and
# recoloured copy, and q̄ the mean of q over the batch:
#   -ELBO + DIGIT_WEIGHT (AGREEMENT_WEIGHT KL(q ‖ q') + H(q) - BALANCE_WEIGHT H(q̄)) + KNOB_WEIGHT knob_term
# A weight of 0 turns a term off, and DIGIT_WEIGHT = 0 also the start and its votes (below).
DIGIT_WEIGHT = 20.0
AGREEMENT_WEIGHT = 5.0  # a larger one makes it harder to leave the uniform distribution, where all agree
BALANCE_WEIGHT = 4.0  # keeps all categories in use
KNOB_WEIGHT = 10.0

# The deformed copies: bounds of a random shift, rotation, scale, stretch and shear, and the elastic displacement.
MAX_SHIFT = 2.25  # pixels, in both directions along each axis
MAX_ROTATION = 13.5  # degrees
MAX_SCALE = 0.125  # share by which the sampling grid grows or shrinks: the size changes by -11 to +14%
MAX_STRETCH = 0.15  # the same for the width alone: -13 to +18%
MAX_SHEAR = 0.15  # horizontal pixels for each vertical one
ELASTIC = 1.2  # pixels: standard deviation of the displacement at 5 × 5 points, interpolated between them
START_ELASTIC = 0.7  # the same in the start (below), where more of it mixes digits

# The start. Some random initializations end with two digits in one category, or with two categories that each hold some
# of both. So several encoders are trained on the first term, without a decoder. During this, each also has a second,
# larger variable, which is trained with the same term and thrown away afterwards (overclustering: Ji et al. 2019). A
# run that is interrupted before its first epoch is saved begins again here.
N_STARTS = 4
N_OVERCLUSTERS = 30  # categories of the larger variable
START_EPOCHS = 6

# The consensus and the votes. For some training images, what all starts say about the image and its nearest neighbours
# is combined into one category (after Dawid & Skene 1979). This corrects mistakes that only some starts make. Those
# that most of them share remain: above all, 7s with a bar are with the 9s. So then, round after round, each image takes
# the category most frequent among its neighbours (label propagation: after Raghavan et al. 2007). One of the starts is
# trained on the result.
N_VOTERS = 20_000  # images; with fewer than some hundreds, categories can get lost
N_NEIGHBORS = 10  # voters that are asked about an image; with too many, all images vote for the same
CONSENSUS_ROUNDS = 10  # rounds of expectation maximization
VOTE_ROUNDS = 5
VOTE_EPOCHS = 6  # epochs of the training on the result; 0: the consensus only chooses the start

# Training.
EPOCHS = 24  # after the start
BATCH_SIZE = 250  # images
LEARNING_RATE = 0.0015  # Adam's
DECAY_FROM = 0.5  # share of EPOCHS after which the rate falls linearly to 0; 1: never
SEED = 0  # seeds the weights, the order of the images, the deformations and the samples
DEVICE = "auto"  # "auto" takes a CUDA or ROCm GPU if there is one, else the CPU; or name it: "cuda", "mps", "cpu"
PRECISION = "auto"  # in training: "auto" is "bfloat16" on a CPU that is fast at it, else "float32"
RESUME = True  # True resumes an unfinished run of the same code and constants, False always starts over

OUTPUT_DIR = runs.ROOT / "outputs" / "vae_control"

# Shapes below: B batch, D = LATENT_DIM, N = N_VARIABLES, K = N_CATEGORIES.


class ControlVAE(nn.Module):
    """One encoder with a Gaussian and a categorical head. The code is the continuous numbers, then the variables."""

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
        return self.posterior(self.encoder(x))

    def posterior(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What encode() gives, from the last hidden layer (B, 256)."""
        mu, logvar = self.gaussian_head(h).float().chunk(2, dim=1)
        logits = self.categorical_head(h).float().view(-1, self.n_variables, self.n_categories)
        return mu, logvar, logits.log_softmax(-1)  # over the K categories of each variable

    def sample(self, mu: Tensor, logvar: Tensor, log_q: Tensor, tau: float, hard: bool) -> Tensor:
        """A code (B, D + N·K) for each image, drawn from what encode() gives."""
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
        """Images (B, 3, 28, 28) → their deterministic codes (B, D + N·K): means, then the likeliest categories."""
        mu, _, log_q = self.encode(x)
        return torch.cat([mu, F.one_hot(log_q.argmax(-1), self.n_categories).flatten(1)], 1)

    def decode(self, code: Tensor) -> Tensor:
        """Codes (B, D + N·K) → images (B, 3, 28, 28) in [0, 1]."""
        return self.decoder(code).float().sigmoid()


# Same as vae_joint.gaussian_kl.
def gaussian_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL of N(mu, exp(logvar)) to N(0, 1) in nats, elementwise. Kingma & Welling 2014, appendix B."""
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar)


# Same as vae_joint.categorical_kl.
def categorical_kl(log_q: Tensor) -> Tensor:
    """KL of each variable to the uniform distribution over its K categories in nats: (B, N, K) → (B, N).

    log K - H(q), with H(q) = -sum q log q. Jang, Gu & Poole 2017.
    """
    return math.log(log_q.shape[-1]) + (log_q.exp() * log_q).sum(-1)


def elbo_terms(model: ControlVAE, x: Tensor, tau: float, hard: bool = False) -> dict[str, Tensor]:
    """The terms of -ELBO in nats, each summed over the batch, so that their sum is -ELBO. Kingma & Welling 2014.

    -ELBO = -E[log p(x | z, v)] + KL(q(z | x) ‖ p(z)) + KL(q(v | x) ‖ p(v)). The first term is the binary cross-entropy
    of the pixels. They lie in [0, 1], not only at its ends, so it does not reach 0.
    """
    posterior = model.encode(x)
    return terms_of_code(model, x, posterior, model.sample(*posterior, tau, hard))


def terms_of_code(model: ControlVAE, x: Tensor, posterior: tuple[Tensor, ...], code: Tensor) -> dict[str, Tensor]:
    """elbo_terms for a posterior that encode(x) has given and a code drawn from it."""
    mu, logvar, log_q = posterior
    return {
        "reconstruction": F.binary_cross_entropy_with_logits(model.decoder(code).float(), x, reduction="sum"),
        "kl_z": gaussian_kl(mu, logvar).sum(),
        "kl_v": categorical_kl(log_q).sum(),
    }


def digit_terms(log_q: Tensor, log_q_copy: Tensor) -> dict[str, Tensor]:
    """What makes the first variable the digit: its log q (B, K) for images and for their deformed copies in other hues.

    Nats, summed over the batch: agreement KL(q ‖ q'), with q held fixed; the entropy H(q) of each image's q; and the
    entropy of their mean, which is high when all categories are in use. The difference of the two entropies is the
    mutual information of image and category. Hu et al. 2017; Ji et al. 2019.
    """
    q, log_mean = log_q.exp(), log_q.logsumexp(0) - math.log(len(log_q))  # from logarithms: finite where q underflows
    return {
        "agreement": (q.detach() * (log_q.detach() - log_q_copy)).sum(),
        "entropy": -(q * log_q).sum(),
        "mean_entropy": -len(q) * (log_mean.exp() * log_mean).sum(),
    }


def digit_loss(terms: dict[str, Tensor]) -> Tensor:
    """The first of the two terms, from digit_terms."""
    return AGREEMENT_WEIGHT * terms["agreement"] + terms["entropy"] - BALANCE_WEIGHT * terms["mean_entropy"]


def overclustering_loss(head: nn.Linear, h: Tensor) -> Tensor:
    """The same for a larger variable: h (2B, 256) is the last hidden layer for images, then for their copies."""
    return digit_loss(digit_terms(*head(h).float().log_softmax(-1).chunk(2)))


def knob_term(model: ControlVAE, code: Tensor) -> Tensor:
    """-log q(c | picture) in nats, summed over the batch of codes (B, D + N·K): is the category that is set drawn?

    The picture is decoded from the code with a random category c in its first variable, and read by the encoder. Only
    the decoder is trained by it. Up to a constant it is minus InfoGAN's bound on the mutual information of c and the
    picture: Chen et al. 2016.
    """
    c = torch.randint(model.n_categories, (len(code),), device=code.device)
    turned = code.detach().clone()
    turned[:, model.latents["v1"]] = F.one_hot(c, model.n_categories).to(turned)
    reader = nn.ModuleList([model.encoder, model.categorical_head]).requires_grad_(False)  # gradients only pass through
    _, _, log_q = model.encode(model.decode(turned))
    reader.requires_grad_(True)
    return F.nll_loss(log_q[:, 0], c, reduction="sum")


def deformed_copies(train: data.ColoredSet, index: Tensor, elastic: float) -> Tensor:
    """The images of these indices (B,), each slightly deformed and in the colour of another one, (B, 3, 28, 28)."""
    bounds = MAX_SHIFT, MAX_ROTATION, MAX_SCALE, MAX_STRETCH, MAX_SHEAR, elastic
    grey = data.deform(train.images[index][:, None] / 255, *bounds)
    return grey * train.colors[index].roll(1, 0)[:, :, None, None]  # the previous image's in the shuffled batch


def neighbours(images: Tensor) -> Tensor:
    """Indices (V, N_NEIGHBORS) of the nearest other images of each of these grey ones (V, 28, 28).

    Nearest means the smallest Euclidean distance between images shrunk by averaging 2 × 2 pixels.
    """
    points = F.avg_pool2d(images[:, None] / 255, 2).flatten(1)
    size = min(N_NEIGHBORS + 1, len(points))  # an image is the nearest to itself
    return torch.cat([torch.cdist(part, points).topk(size, largest=False).indices for part in points.split(500)])[:, 1:]


def consensus(first: list[Tensor], larger: list[Tensor], nearest: Tensor) -> tuple[int, Tensor]:
    """Which start goes on, and the categories of V images (V,): what all starts say about them, combined. No labels.

    first: each start's probabilities of its first variable, (V, K); larger: of its larger variable, (V, L); nearest:
    the neighbours of each image, (V, N_NEIGHBORS). In the latent class model that is fitted, each image has one unknown
    category. For each category, and each start, two tables say how often the start puts such an image into each of its
    L groups, and how often the image's neighbours. Expectation maximization alternates: from the categories'
    probabilities for each image it computes the tables, and from these the probabilities. Of the solutions that begin
    with each start's first variable the likeliest is taken, with its start. After Dawid & Skene 1979, where observers
    with unknown errors judge the same cases; here probabilities count as fractions of an answer.
    """
    seen = torch.cat([*larger, *(p[nearest].mean(1) for p in larger)], 1)  # (V, 2 · N_STARTS · L)
    solutions = []
    for q in first:
        for _ in range(CONSENSUS_ROUNDS):
            tables = (q.T @ seen + 1) / (q.sum(0)[:, None] + larger[0].shape[1])  # (K, ·); the 1 keeps all above 0
            joint = q.mean(0).clamp_min(1e-9).log() + seen @ tables.log().T  # log p(category, seen) + constant, (V, K)
            q = joint.softmax(1)
        solutions.append((joint.logsumexp(1).mean().item(), q.argmax(1)))
    best = max(range(len(first)), key=lambda i: solutions[i][0])
    return best, solutions[best][1]


def voted(categories: Tensor, nearest: Tensor) -> Tensor:
    """The categories of images (V,) after VOTE_ROUNDS votes, (V,). After Raghavan et al. 2007.

    In each, all images at once take the most frequent category of their nearest ones (V, N_NEIGHBORS), the lowest in a
    tie.
    """
    for _ in range(VOTE_ROUNDS):
        votes = [(categories == k)[nearest].sum(1) for k in range(N_CATEGORIES)]
        categories = torch.stack(votes, 1).argmax(1)
    return categories


def best_start(starts: list[tuple], train: data.ColoredSet, run: runs.Run) -> ControlVAE:
    """Trains one of the starts (model, head of the larger variable, optimizer) on the consensus and votes; returns it.

    It learns to put N_VOTERS random training images, and their deformed copies, into the category of the vote.
    """
    voters = torch.randperm(len(train))[:N_VOTERS].to(run.device)
    nearest = neighbours(train.images[voters])
    with torch.no_grad():
        hidden = [torch.cat([m.encoder(train.colored(part)) for part in voters.split(1000)]) for m, _, _ in starts]
        first = [model.posterior(h)[2][:, 0].exp() for (model, _, _), h in zip(starts, hidden, strict=True)]
        larger = [head(h).softmax(-1) for (_, head, _), h in zip(starts, hidden, strict=True)]
        best, categories = consensus(first, larger, nearest)
        categories = voted(categories, nearest)
        share = (categories != first[best].argmax(1)).float().mean()
    print(f"votes | start {best + 1} goes on, {share:.1%} of {len(voters):,} images change category", flush=True)
    model, _, optimizer = starts[best]
    for epoch in range(1, VOTE_EPOCHS + 1):
        batches = torch.randperm(len(voters)).to(run.device).split(BATCH_SIZE)
        for batch in tqdm(batches, f"votes, epoch {epoch}/{VOTE_EPOCHS}", leave=False, disable=None):
            index = voters[batch]
            with run.autocast():
                _, _, log_q = model.encode(torch.cat([train.colored(index), deformed_copies(train, index, ELASTIC)]))
            loss = F.nll_loss(log_q[:, 0], categories[batch].repeat(2), reduction="sum")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def first_weights(train: data.ColoredSet, run: runs.Run) -> ControlVAE:
    """A model to begin with: trains N_STARTS encoders with the first term, if it is on, and returns the best start.

    Its pictures start at the mean level of the coloured training images. With torch's own biases they start grey, and
    the first steps would only learn to darken all of them.
    """
    starts = []
    for _ in range(N_STARTS):
        model = ControlVAE(LATENT_DIM, N_VARIABLES, N_CATEGORIES).to(run.device)
        head = nn.Linear(model.gaussian_head.in_features, N_OVERCLUSTERS).to(run.device)
        optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], LEARNING_RATE, fused=True)
        starts.append((model, head, optimizer))
    for epoch in range(1, START_EPOCHS + 1 if DIGIT_WEIGHT else 1):
        sums = torch.zeros(N_STARTS, device=run.device)
        batches = torch.randperm(len(train)).to(run.device).split(BATCH_SIZE)
        for index in tqdm(batches, f"start, epoch {epoch}/{START_EPOCHS}", leave=False, disable=None):
            x = torch.cat([train.colored(index), deformed_copies(train, index, START_ELASTIC)])
            for i, (model, head, optimizer) in enumerate(starts):
                with run.autocast():
                    h = model.encoder(x)
                    _, _, log_q = model.posterior(h)
                    loss = digit_loss(digit_terms(*log_q[:, 0].chunk(2)))
                    total = loss + overclustering_loss(head, h)
                optimizer.zero_grad()
                total.backward()
                optimizer.step()
                sums[i] += loss.detach()
        losses = " ".join(f"{loss:.3f}" for loss in (sums / len(train)).tolist())
        print(f"start, epoch {epoch}/{START_EPOCHS} | loss of each {losses}", flush=True)
    model = best_start(starts, train, run) if DIGIT_WEIGHT else starts[0][0]
    nn.init.constant_(model.decoder[-2].bias, data.mean_level(train).logit().item())  # the last linear layer's
    return model


def load_model(path: Path) -> ControlVAE:
    """The trained network from a model.pt that this script wrote, on the CPU, in eval mode."""
    return runs.load_model(path, ControlVAE)


def main() -> dict:
    """Trains, scores and draws. Returns the results, which are also written to metrics.json."""
    with runs.start(OUTPUT_DIR, globals()) as run:
        train, test = data.colored_set(train=True, device=run.device), data.colored_set(train=False, device=run.device)
        run.code |= {"judge": judge.fingerprint(judge.load(run.device)), "images": len(train)}

        torch.manual_seed(SEED)
        model = ControlVAE(LATENT_DIM, N_VARIABLES, N_CATEGORIES).to(run.device)
        optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=True)  # fused: faster
        n_batches = math.ceil(len(train) / BATCH_SIZE)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, functools.partial(rate, steps=EPOCHS * n_batches))
        history = run.resume(model=model, optimizer=optimizer, schedule=schedule)  # a row for each finished epoch
        if not history:
            model.load_state_dict(first_weights(train, run).state_dict())
        step = len(history) * n_batches

        for epoch in range(len(history) + 1, EPOCHS + 1):
            seen = []  # the terms of each batch
            batches = torch.randperm(len(train)).to(run.device).split(BATCH_SIZE)
            for index in tqdm(batches, f"epoch {epoch}/{EPOCHS}", leave=False, disable=None):
                tau = max(TAU_MIN, TAU_START * math.exp(-TAU_DECAY * step))
                x = train.colored(index)
                with run.autocast():
                    encoded = model.encode(torch.cat([x, deformed_copies(train, index, ELASTIC)]))  # one pass for both
                    posterior, copies = zip(*(part.chunk(2) for part in encoded), strict=True)
                    code = model.sample(*posterior, tau, HARD)
                    terms = {
                        **terms_of_code(model, x, posterior, code),
                        **digit_terms(posterior[2][:, 0], copies[2][:, 0]),
                        "knob": knob_term(model, code),
                    }
                loss = terms["reconstruction"] + terms["kl_z"] + terms["kl_v"]
                loss = loss + DIGIT_WEIGHT * digit_loss(terms) + KNOB_WEIGHT * terms["knob"]
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

                schedule.step()
                seen.append({name: term.detach() for name, term in terms.items()})
                step += 1

            terms_of = functools.partial(elbo_terms, model, tau=tau, hard=HARD)
            row = metrics.epoch_row(seen, terms_of, model, train, test)
            history.append({"epoch": epoch, "seconds": run.seconds(), "tau": tau, **row})
            run.checkpoint(history)  # with the state of what resume() was given
            metrics.print_epoch(history, EPOCHS)

        # Only from here on are labels used. They name and score what was learned.
        run.end_training()
        runs.save_model(OUTPUT_DIR / "model.pt", model, LATENT_DIM, N_VARIABLES, N_CATEGORIES)
        scores = metrics.evaluate(model, functools.partial(elbo_terms, model, tau=history[-1]["tau"]), train, test)
        scores.results.update(metrics.color_wheel_scores(model.latents, scores.test_codes, test))
        scores.results.update(metrics.control_by_knob(model, scores, train, test))
        figures(model, train, test, scores, history)
        return run.finish(scores.results, history)


def rate(step: int, steps: int) -> float:
    """The learning rate as a share of LEARNING_RATE: 1 until DECAY_FROM, then falling linearly to 0."""
    return min(1, (1 - step / steps) / max(1 - DECAY_FROM, 1 / steps))


@torch.inference_mode()
def figures(
    model: ControlVAE,
    train: data.ColoredSet,
    test: data.ColoredSet,
    scores: metrics.Evaluation,
    history: list[dict],
) -> None:
    """Draws all figures. Whatever a figure does not vary stays as in the codes of test images."""
    name, results, codes, device = "Control VAE", scores.results, scores.test_codes, scores.test_codes.device
    plots.common_figures(OUTPUT_DIR, name, scores, history)
    title = f"{name}: the first variable is the digit of {results['digit_accuracy']:.1%} of the test images"
    plots.confusion(OUTPUT_DIR / "confusion.png", results["category_counts"], results["category_digits"], title)
    ticks = torch.linspace(-4, 4, 17, device=device)
    grid = metrics.plane_codes(codes[0], model.latents, ticks)
    pictures = model.decode(grid.flatten(0, 1)).unflatten(0, grid.shape[:2])
    plots.color_wheel(OUTPUT_DIR / "color_wheel.png", pictures, ticks, codes, test.hues, name)

    # The finding: the first test images, their digit turned through its categories, their hue once around the wheel.
    one_hot = torch.eye(N_CATEGORIES, device=device)
    order = sorted(range(N_CATEGORIES), key=lambda k: results["category_digits"][k])
    labels = [data.class_names()[results["category_digits"][k]] for k in order]
    hues = torch.arange(0, 360, 30.0, device=device)
    at_hue = metrics.hue_codes(scores.train_codes[:, :LATENT_DIM], train, hues)  # (12, D)
    by_digit = codes[:8, None].repeat(1, N_CATEGORIES, 1)
    by_digit[:, :, model.latents["v1"]] = one_hot[order]
    by_hue = codes[:8, None].repeat(1, len(hues), 1)
    by_hue[:, :, :LATENT_DIM] = at_hue
    turned = [model.decode(part.flatten(0, 1)).unflatten(0, part.shape[:2]) for part in (by_digit, by_hue)]
    plots.knobs(OUTPUT_DIR / "finding.png", test.colored(slice(8)), *turned, labels, [f"{hue:.0f}°" for hue in hues])

    # What the other variables do: the first test image of each digit, one variable stepping.
    firsts = codes[metrics.first_of_each_digit(test.digits, 1)[:, 0]]  # (10, D + N·K)
    styles = [f"v{i + 1}" for i in range(1, min(N_VARIABLES, 4))]
    stepped = firsts.repeat(len(styles), N_CATEGORIES, 1, 1)  # (variable, K, 10, D + N·K)
    for codes_of_variable, variable in zip(stepped, styles, strict=True):
        codes_of_variable[:, :, model.latents[variable]] = one_hot[:, None]
    grids = [model.decode(part.flatten(0, 1)).unflatten(0, part.shape[:2]) for part in stepped]
    if styles:
        plots.stepping(
            OUTPUT_DIR / "styles.png", grids, styles, f"{name}: what the categories of the other variables change"
        )

    # Moving: ten digits, all with the first test image's style, follow the same knobs: the hue, then each variable.
    ten = codes[0].repeat(len(order), 1)
    ten[:, model.latents["v1"]] = one_hot[order]
    frames, titles = [], []
    around = torch.arange(0, 360, 15.0, device=device)
    for hue, z in zip(around, metrics.hue_codes(scores.train_codes[:, :LATENT_DIM], train, around), strict=True):
        ten[:, :LATENT_DIM] = z
        frames.append(ten.clone())
        titles.append(f"{name}: hue {hue:.0f}° (the digit stays)")
    for variable in styles:
        before = ten.clone()
        for k in range(N_CATEGORIES):
            ten[:, model.latents[variable]] = one_hot[k]
            frames.append(ten.clone())
            titles.append(f"{name}: category {k + 1} of {variable} (digit and hue stay)")
        ten = before
    pictures = torch.stack([model.decode(frame) for frame in frames])[:, None]
    plots.movie(OUTPUT_DIR / "knobs.gif", pictures, titles, [""], labels, "first variable set to the digit", fps=5)


if __name__ == "__main__":
    runs.command(main)
