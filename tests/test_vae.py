import contextlib
import inspect
import json
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Categorical, Normal, kl_divergence
from torch.optim.optimizer import register_optimizer_step_post_hook

import data
import metrics
import plots
import vae_continuous
import vae_discrete
import vae_joint

CPU = torch.device("cpu")
MODELS = {
    vae_continuous: lambda: vae_continuous.ContinuousVAE(2),
    vae_discrete: lambda: vae_discrete.DiscreteVAE(3, 20),
    vae_joint: lambda: vae_joint.JointVAE(2, 3, 20),
}
SCRIPTS = pytest.mark.parametrize("script", MODELS, ids=lambda script: script.__name__)


@pytest.fixture
def images(test_set):
    return test_set.colored(slice(60))


# ----------------------------------------------------------------------------------------- networks


def sizes(module):
    return [(m.in_features, m.out_features) if isinstance(m, nn.Linear) else type(m).__name__ for m in module]


@SCRIPTS
def test_networks(script, images):
    torch.manual_seed(0)
    model, width = MODELS[script](), {vae_continuous: 2, vae_discrete: 60, vae_joint: 62}[script]
    assert sizes(model.encoder) == ["Flatten", (2352, 512), "ReLU", (512, 256), "ReLU"]
    assert sizes(model.decoder) == [(width, 256), "ReLU", (256, 512), "ReLU", (512, 2352), "Unflatten"]
    heads = [sizes([head])[0] for name, head in model.named_children() if name.endswith("head")]
    assert heads == [(256, 4)] * (script is not vae_discrete) + [(256, 60)] * (script is not vae_continuous)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == {vae_continuous: 2_676_020, vae_discrete: 2_705_260, vae_joint: 2_706_800}[script]

    logits, *rest = model(images) if script is vae_continuous else model(images, 1.0)
    assert logits.shape == images.shape
    assert [part.shape[1:] for part in rest] == [(2,)] * (script is not vae_discrete) + [(3, 20)] * (width > 2)
    code = model.code(images)
    assert torch.equal(code, model.code(images)) and code.shape == (60, width) and code.dtype == torch.float32
    assert sum(columns.stop - columns.start for columns in model.latents.values()) == width
    if script is not vae_discrete:  # the continuous numbers come first and are the posterior means
        assert torch.equal(code[:, :2], model.encode(images)[0])
    for name, columns in model.latents.items():
        if name.startswith("v"):
            assert torch.equal(code[:, columns].sort(-1).values, torch.eye(20)[:1].flip(1).expand(60, 20))
    pictures = model.decode(code)
    assert pictures.shape == images.shape and pictures.min() >= 0 and pictures.max() <= 1
    assert model.kl(images).shape == (60, len(model.latents))


@pytest.mark.parametrize("script", [vae_discrete, vae_joint])
def test_categories(script, images):
    """Logits have no activation. The softmax is each variable's. Samples are relaxed or one-hot."""
    torch.manual_seed(0)
    model, seen = MODELS[script](), []
    log_q = model.encode(images)
    log_q = log_q if script is vae_discrete else log_q[2]
    logits = model.categorical_head(model.encoder(images)).view(60, 3, 20)
    assert (logits < 0).any() and torch.allclose(logits.softmax(-1), log_q.exp(), atol=1e-6)
    model.decoder[0].register_forward_pre_hook(lambda module, args: seen.append(args[0][:, -60:].view(-1, 3, 20)))
    for hard in (False, True):
        script.elbo_terms(model, images, 0.7, hard)
        assert torch.allclose(seen[-1].sum(-1), torch.ones(60, 3)) and seen[-1].min() >= 0
    relaxed, one_hot = seen
    assert (relaxed > 0.01).sum() > 2 * 60 * 3 and one_hot.detach().round(decimals=5).unique().tolist() == [0, 1]


def test_category_grid():
    model = vae_joint.JointVAE(2, 3, 4)
    code = torch.cat([torch.tensor([0.5, -1.0]), torch.eye(4)[2], torch.eye(4)[1], torch.eye(4)[3]])
    grid = vae_joint.category_grid(model, code, "v1", "v3")
    assert grid.shape == (4, 4, 14)
    expected = torch.cat([torch.tensor([0.5, -1.0]), torch.eye(4)[0], torch.eye(4)[1], torch.eye(4)[2]])
    assert torch.equal(grid[0, 2], expected)


def test_copied_blocks_are_equal():
    def source(function):
        return inspect.getsource(function).replace("JointVAE", "VAE").replace("DiscreteVAE", "VAE")

    assert source(vae_continuous.gaussian_kl) == source(vae_joint.gaussian_kl)
    assert source(vae_discrete.categorical_kl) == source(vae_joint.categorical_kl)
    assert source(vae_discrete.category_grid) == source(vae_joint.category_grid)


# --------------------------------------------------------------------------------------------- loss


def test_gaussian_kl():
    mu, logvar = torch.randn(2, 50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = kl_divergence(Normal(mu, (0.5 * logvar).exp()), Normal(torch.zeros_like(mu), 1))
    assert torch.allclose(vae_joint.gaussian_kl(mu, logvar), expected)
    assert vae_joint.gaussian_kl(torch.zeros(1), torch.zeros(1)) == 0


def test_categorical_kl():
    logits = 3 * torch.randn(50, 3, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = kl_divergence(Categorical(logits=logits), Categorical(logits=torch.zeros_like(logits)))
    assert torch.allclose(vae_joint.categorical_kl(logits.log_softmax(-1)), expected)
    certain = 1e4 * torch.eye(20)[None, :1]
    assert vae_joint.categorical_kl(certain.log_softmax(-1)).item() == pytest.approx(math.log(20))


@SCRIPTS
def test_the_terms_are_sums_over_the_batch(script, images, monkeypatch):
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)  # no noise
    if script is not vae_continuous:
        monkeypatch.setattr(script.F, "gumbel_softmax", lambda logits, tau, hard: (logits / tau).softmax(-1))
    torch.manual_seed(0)
    model, tau = MODELS[script](), () if script is vae_continuous else (0.7,)
    once = script.elbo_terms(model, images, *tau)
    halves = [script.elbo_terms(model, part, *tau) for part in images.split(30)]
    for name, term in once.items():
        assert torch.allclose(halves[0][name] + halves[1][name], term, rtol=1e-4)
    kl = model.kl(images).sum(0)
    parts = {"reconstruction": once["reconstruction"], "kl_z": kl[:2], "kl_v": kl[-3:]}
    assert all(torch.allclose(term, parts[name].sum(), rtol=1e-4) for name, term in once.items())


FIRST_STEPS = [
    ("vae_continuous", None),
    ("vae_discrete", None),
    ("vae_joint", None),
    ("vae_joint", ("+ BETA * (", "+ (")),
    ("vae_joint", (' + terms["kl_v"])', ")")),
    ("vae_continuous", ("logvar.exp() - 1", "-logvar.exp() - 1")),
]


@pytest.mark.parametrize(("name", "mutation"), FIRST_STEPS)
def test_the_gradient_of_mains_first_step_is_that_of_the_documented_loss(
    name, mutation, edited, few_images, monkeypatch
):
    """-E[log p(x | z, v)] + BETA · (KL of q(z | x) + KL of q(v | x)), by torch.distributions."""
    script = edited(name, *[mutation] * (mutation is not None))
    script.BETA, script.TAU_START, script.PRECISION, seen = 3.0, 0.8, "float32", {}
    colored = data.ColoredSet.colored

    def batch(self, index):
        seen.update(x=colored(self, index), rng=torch.get_rng_state())
        return seen["x"]

    class Recorder(torch.optim.Adam):
        def step(self):
            seen["parameters"] = self.param_groups[0]["params"]
            raise KeyboardInterrupt

    monkeypatch.setattr(data.ColoredSet, "colored", batch)
    monkeypatch.setattr(torch.optim, "Adam", Recorder)
    with pytest.raises(KeyboardInterrupt):
        script.main()

    x, model = seen["x"], MODELS[{script.__name__: script for script in MODELS}[name]]()
    for mine, parameter in zip(model.parameters(), seen["parameters"], strict=True):
        mine.data.copy_(parameter)
    torch.set_rng_state(seen["rng"])
    encoded = model.encode(x)
    mu, logvar, log_q = {"vae_continuous": (*encoded, None), "vae_discrete": (None, None, encoded)}.get(name, encoded)
    code, kl = [], 0
    if mu is not None:
        q = Normal(mu, logvar.exp().sqrt())
        code.append(q.mean + q.stddev * torch.randn_like(mu))
        kl = kl + kl_divergence(q, Normal(0, 1)).sum()
    if log_q is not None:
        code.append(F.gumbel_softmax(log_q, 0.8).flatten(1))
        kl = kl + kl_divergence(Categorical(logits=log_q), Categorical(logits=torch.zeros_like(log_q))).sum()
    p = model.decode(torch.cat(code, 1))
    reconstruction = F.binary_cross_entropy(p, x, reduction="sum")
    loss = reconstruction + (3 if name == "vae_joint" else 1) * kl
    gradients = zip(torch.autograd.grad(loss, [*model.parameters()]), seen["parameters"], strict=True)
    off = max(((mine - p.grad).norm() / mine.norm()).item() for mine, p in gradients)
    assert off < 1e-4 if mutation is None else off > 1e-2

    level = data.mean_level(data.colored_set(train=True, device=CPU)).item()  # pictures start at it
    entropy = -level * math.log(level) - (1 - level) * math.log(1 - level)
    assert reconstruction.item() / len(x) == pytest.approx(2352 * entropy, rel=0.05)


# --------------------------------------------------------------------------------------- whole runs


def run(script, folder, monkeypatch, **constants):
    monkeypatch.setattr(script, "OUTPUT_DIR", folder)
    for name, value in constants.items():
        monkeypatch.setattr(script, name, value)
    return script.main()


def interrupt(*args):
    raise KeyboardInterrupt


FIGURES = {
    vae_continuous: {"plane.png", "latent_map.png", "neighborhoods.png", "circles.gif"},
    vae_discrete: {"categories.png", "steps.gif"},
    vae_joint: {"color_wheel.png", "categories.png", "finding.png", "hue_circle.gif"},
}


@SCRIPTS
def test_a_resumed_run_equals_an_uninterrupted_one(script, few_images, tmp_path, monkeypatch, capsys):
    """In weights and results, to the last bit; whether or not it draws its figures."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    results = run(script, whole, monkeypatch, EPOCHS=2, BATCH_SIZE=64)
    log = capsys.readouterr().out
    assert "epoch 2/2" in log
    written = json.loads((whole / "metrics.json").read_text())
    assert written["results"] == results and written["constants"]["BATCH_SIZE"] == 64
    assert written["code"].items() >= {"script": script.__name__, "images": 400}.items()
    assert results["test_above_floor"] == pytest.approx(results["test_loss"] - results["pixel_entropy"])
    names = {"test_reconstruction", "test_kl_z", "test_kl_v"} & results.keys()
    assert sum(results[name] for name in names) == pytest.approx(results["test_loss"])
    for score in ("reconstruction", "demand", "swap"):
        digit, hue, both = (results[f"{score}_{part}"] for part in ("digit", "hue", "both"))
        assert 0 <= both <= min(digit, hue) <= max(digit, hue) <= 1
    common = {"loss.png", "reconstructions.png", "latent_usage.png", "control_on_demand.png", "control_by_swap.png"}
    files = {path.name for path in whole.iterdir()}
    assert common | FIGURES[script] <= files and not [name for name in files if "checkpoint" in name or "tmp" in name]
    if script is not vae_continuous:  # seven batches an epoch
        assert [row["tau"] for row in written["history"]] == pytest.approx([math.exp(-0.0003 * n) for n in (6, 13)])

    monkeypatch.setattr(script, "figures", lambda *args: None)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(metrics, "print_epoch", interrupt)
        run(script, cut, monkeypatch)
    assert (cut / "checkpoint.pt").exists() and not (cut / "metrics.json").exists()
    assert run(script, cut, monkeypatch) == results and "Going on after epoch 1" in capsys.readouterr().out
    first, second = (script.load_model(folder / "model.pt") for folder in (whole, cut))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))

    test = data.colored_set(train=False, device=CPU)  # what was saved is what was scored
    assert metrics.reconstruction(first, metrics.codes_of(first, test), test).items() <= results.items()
    assert not first.training


@pytest.mark.parametrize(
    ("script", "constants"),
    [
        (vae_continuous, {"LATENT_DIM": 1, "REQUESTS": ((3.0, 60), (True, 60)), "BATCH_SIZE": 400}),
        (vae_joint, {"LATENT_DIM": 1, "N_VARIABLES": 1, "N_CATEGORIES": 2, "HARD": True}),
    ],
)
def test_unusual_constants_work(script, constants, few_images, tmp_path, monkeypatch):
    run(script, tmp_path, monkeypatch, EPOCHS=1, **constants)
    assert FIGURES[script] <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(("script", "decay"), [(vae_continuous, 0.25), (vae_discrete, 0.0), (vae_joint, 0.25)])
def test_the_average_of_the_weights_is_saved_and_scored(script, decay, few_images, tmp_path, monkeypatch):
    """It moves at every tenth step and after an epoch's last."""
    weights, scored = [], []

    def keep(optimizer, *_):
        weights.append(optimizer.param_groups[0]["params"][0].detach().clone())

    def stop(model, *args):
        scored.append(model)
        raise KeyboardInterrupt

    monkeypatch.setattr(metrics, "evaluate", stop)
    hook = register_optimizer_step_post_hook(keep)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(script, tmp_path, monkeypatch, EPOCHS=2, BATCH_SIZE=30, EMA_DECAY=decay)
    finally:
        hook.remove()
    average = weights[0]
    for step in (10, 14, 20, 28):
        average = average.lerp(weights[step - 1], max(1 - decay, 90 / (90 + step)))
    saved = script.load_model(tmp_path / "model.pt").state_dict()["encoder.1.weight"]
    assert len(weights) == 28 and torch.allclose(saved, weights[-1], atol=2e-5) == (decay == 0)
    assert (saved - average).abs().max() < 0.1 * (saved - weights[-1]).abs().max() + 2e-5  # half precision
    assert torch.equal(scored[0].encoder[1].weight, saved)


def test_a_loss_that_is_not_finite_ends_the_run(few_images, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"^\w+ is (nan|inf) in epoch 1: .*LEARNING_RATE"):
        run(vae_joint, tmp_path, monkeypatch, EPOCHS=1, LEARNING_RATE=1e25)
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}


# ------------------------------------------------------------------------- what people do with them


def test_one_more_term_is_in_the_log_and_in_the_figure_of_the_loss(edited, few_images, monkeypatch, capsys):
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.update({path.name: figure}))
    figures, terms = {}, "terms = elbo_terms(model, train.colored(index), tau, HARD)\n"
    penalty = f'{" " * 16}terms["penalty"] = model.gaussian_head.weight.square().sum()\n'
    script = edited("vae_joint", (terms, terms + penalty), ("loss = ", 'loss = terms["penalty"] + '))
    script.EPOCHS = 1
    script.figures = lambda model, train, test, scores, history: plots.common_figures(
        script.OUTPUT_DIR, "", scores, history
    )
    script.main()
    assert "penalty" in capsys.readouterr().out
    labels = [line.get_label() for axes in figures["loss.png"].axes for line in axes.lines]
    assert [label for label in labels if "penalty" in label] and len(labels) == 7


def test_a_compiled_model_is_saved_under_its_own_names(edited, few_images):
    network = "JointVAE(LATENT_DIM, N_VARIABLES, N_CATEGORIES).to(run.device)"
    script = edited("vae_joint", (network, f'torch.compile({network}, backend="eager")'))
    script.EPOCHS, script.BATCH_SIZE = 1, 200
    results = script.main()
    model, test = vae_joint.load_model(script.OUTPUT_DIR / "model.pt"), data.colored_set(train=False, device=CPU)
    assert metrics.reconstruction(model, metrics.codes_of(model, test), test).items() <= results.items()


def test_torchs_own_settings_and_a_closed_stderr_change_no_result(few_images, no_figures, tmp_path, monkeypatch):
    usual = run(vae_joint, tmp_path / "usual", monkeypatch, EPOCHS=1)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_float32_matmul_precision("high")
    try:
        monkeypatch.setattr(sys, "stderr", None)  # closed, as by 2>&-, or there is no window
        with torch.no_grad():
            assert run(vae_joint, tmp_path / "other", monkeypatch) == usual
        assert torch.get_default_dtype() == torch.float64 and torch.get_default_device().type == "meta"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        torch.set_float32_matmul_precision("highest")


def test_a_folder_of_another_script_is_refused(few_images, no_figures, tmp_path, monkeypatch):
    """Whether its run has ended or not."""
    for ended in (False, True):
        with contextlib.nullcontext() if ended else pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
            if not ended:
                patch.setattr(metrics, "print_epoch", interrupt)
            run(vae_joint, tmp_path, monkeypatch, EPOCHS=1)
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(SystemExit, match=r"results of vae_joint\.py: [^.]*OUTPUT_DIR"):
            run(vae_discrete, tmp_path, monkeypatch, EPOCHS=1)
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
