import inspect
import json
import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Normal, kl_divergence
from torch.optim.optimizer import register_optimizer_step_post_hook

import data
import metrics
import runs
import vae_continuous
import vae_discrete
import vae_joint

MODELS = {
    vae_continuous: lambda: vae_continuous.ContinuousVAE(2),
    vae_discrete: lambda: vae_discrete.DiscreteVAE(3, 20),
    vae_joint: lambda: vae_joint.JointVAE(2, 3, 20),
}
SCRIPTS = pytest.mark.parametrize("script", MODELS, ids=lambda script: script.__name__)


@pytest.fixture
def images(test_set):
    return test_set.colored(slice(60))


def terms_of(script, model, x, **options):
    torch.manual_seed(0)
    return script.elbo_terms(model, x) if script is vae_continuous else script.elbo_terms(model, x, 0.7, **options)


# ------------------------------------------------------------------------------------------------ networks


def layers(module):
    return [
        (type(m).__name__, *((m.in_features, m.out_features) if isinstance(m, nn.Linear) else ()))
        for m in module.modules()
        if not list(m.children())
    ]


@SCRIPTS
def test_layers(script):
    model = MODELS[script]()
    assert layers(model.encoder) == [
        ("Flatten",),
        ("Linear", 2352, 512),
        ("ReLU",),
        ("Linear", 512, 256),
        ("ReLU",),
    ]
    width = {vae_continuous: 2, vae_discrete: 60, vae_joint: 62}[script]
    assert layers(model.decoder) == [
        ("Linear", width, 256),
        ("ReLU",),
        ("Linear", 256, 512),
        ("ReLU",),
        ("Linear", 512, 2352),
        ("Unflatten",),
    ]
    heads = {name: layers(module) for name, module in model.named_children() if name.endswith("head")}
    gaussian, categorical = {"gaussian_head": [("Linear", 256, 4)]}, {"categorical_head": [("Linear", 256, 60)]}
    assert (
        heads
        == {
            vae_continuous: gaussian,
            vae_discrete: categorical,
            vae_joint: gaussian | categorical,
        }[script]
    )
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == {vae_continuous: 2_676_020, vae_discrete: 2_705_260, vae_joint: 2_706_800}[script]


def test_shapes(images):
    b = len(images)
    logits, kl = MODELS[vae_continuous]()(images)
    assert logits.shape == (b, 3, 28, 28) and kl.shape == (b, 2)
    logits, log_q = MODELS[vae_discrete]()(images, 1.0)
    assert logits.shape == (b, 3, 28, 28) and log_q.shape == (b, 3, 20)
    logits, kl, log_q = MODELS[vae_joint]()(images, 1.0)
    assert logits.shape == (b, 3, 28, 28) and kl.shape == (b, 2) and log_q.shape == (b, 3, 20)


@SCRIPTS
def test_codes(script, images):
    torch.manual_seed(0)
    model = MODELS[script]()
    code = model.code(images)
    assert torch.equal(code, model.code(images)) and code.dtype == torch.float32
    assert sum(columns.stop - columns.start for columns in model.latents.values()) == code.shape[1]
    if script is not vae_discrete:  # the continuous numbers come first and are the posterior means
        assert torch.equal(code[:, :2], model.encode(images)[0])
    for name, columns in model.latents.items():
        if name.startswith("v"):
            assert torch.equal(code[:, columns].sort(-1).values, torch.eye(20)[:1].flip(1).expand(60, 20))
    pictures = model.decode(code)
    assert pictures.shape == images.shape and pictures.min() >= 0 and pictures.max() <= 1
    assert model.kl(images).shape == (60, len(model.latents))


@pytest.mark.parametrize("script", [vae_discrete, vae_joint])
def test_logits_have_no_activation_and_a_softmax_of_their_own_variable(script, images):
    torch.manual_seed(0)
    model = MODELS[script]()
    log_q = model.encode(images)
    log_q = log_q if script is vae_discrete else log_q[2]
    assert torch.allclose(log_q.exp().sum(-1), torch.ones(60, 3))  # over K, not over N·K
    logits = model.categorical_head(model.encoder(images)).view(60, 3, 20)
    assert (logits < 0).any() and torch.allclose(logits.softmax(-1), log_q.exp(), atol=1e-6)


@pytest.mark.parametrize("script", [vae_discrete, vae_joint])
def test_categories_are_sampled_as_relaxed_or_one_hot(script, images):
    seen = []
    model = MODELS[script]()
    model.decoder[0].register_forward_pre_hook(lambda module, args: seen.append(args[0][:, -60:].view(-1, 3, 20)))
    for hard in (False, True):
        terms_of(script, model, images, hard=hard)
    relaxed, one_hot = seen
    for sample in seen:
        assert torch.allclose(sample.sum(-1), torch.ones(60, 3)) and sample.min() >= 0
    assert (relaxed > 0.01).sum() > 2 * 60 * 3
    assert set(one_hot.detach().round(decimals=5).unique().tolist()) == {0.0, 1.0}


# ---------------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("script", [vae_continuous, vae_joint])
def test_gaussian_kl(script):
    mu, logvar = torch.randn(2, 50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = kl_divergence(Normal(mu, (0.5 * logvar).exp()), Normal(torch.zeros_like(mu), 1))
    assert torch.allclose(script.gaussian_kl(mu, logvar), expected)
    assert script.gaussian_kl(torch.zeros(1), torch.zeros(1)) == 0


@pytest.mark.parametrize("script", [vae_discrete, vae_joint])
def test_categorical_kl(script):
    logits = 3 * torch.randn(50, 3, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = kl_divergence(Categorical(logits=logits), Categorical(logits=torch.zeros_like(logits)))
    assert torch.allclose(script.categorical_kl(logits.log_softmax(-1)), expected)
    uniform, certain = torch.zeros(1, 1, 20), 1e4 * torch.eye(20)[None, :1]
    assert script.categorical_kl(uniform.log_softmax(-1)).item() == pytest.approx(0, abs=1e-6)
    assert script.categorical_kl(certain.log_softmax(-1)).item() == pytest.approx(math.log(20))


@SCRIPTS
def test_the_terms_are_sums_over_the_batch(script, images, monkeypatch):
    """The same images twice give each term twice; and each term is what its definition says, on one scale."""
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)  # no noise
    if script is not vae_continuous:
        monkeypatch.setattr(script.F, "gumbel_softmax", lambda logits, tau, hard: (logits / tau).softmax(-1))
    torch.manual_seed(0)
    model = MODELS[script]()
    x = images
    once, twice = terms_of(script, model, x), terms_of(script, model, torch.cat([x, x]))
    halves = [terms_of(script, model, part) for part in x.split(30)]
    for name, term in once.items():
        assert torch.allclose(twice[name], 2 * term, rtol=1e-4)
        assert torch.allclose(halves[0][name] + halves[1][name], term, rtol=1e-4)
    p = (model(x) if script is vae_continuous else model(x, 0.7))[0].sigmoid()
    assert torch.allclose(once["reconstruction"], -(x * p.log() + (1 - x) * (1 - p).log()).sum(), rtol=1e-4)
    kl = model.kl(x).sum(0)
    parts = {"kl_z": kl[:2], "kl_v": kl[-3:]}
    for name in once.keys() - {"reconstruction"}:
        assert torch.allclose(once[name], parts[name].sum(), rtol=1e-4)


def test_copied_blocks_are_equal():
    def source(function):
        return inspect.getsource(function).replace("JointVAE", "VAE").replace("DiscreteVAE", "VAE")

    assert source(vae_continuous.gaussian_kl) == source(vae_joint.gaussian_kl)
    assert source(vae_discrete.categorical_kl) == source(vae_joint.categorical_kl)
    assert source(vae_discrete.category_grid) == source(vae_joint.category_grid)


def test_category_grid():
    model = vae_joint.JointVAE(2, 3, 4)
    code = torch.cat([torch.tensor([0.5, -1.0]), torch.eye(4)[2], torch.eye(4)[1], torch.eye(4)[3]])
    grid = vae_joint.category_grid(model, code, "v1", "v3")
    assert grid.shape == (4, 4, 14)
    expected = torch.cat([torch.tensor([0.5, -1.0]), torch.eye(4)[0], torch.eye(4)[1], torch.eye(4)[2]])
    assert torch.equal(grid[0, 2], expected)


# ----------------------------------------------------------------------------------------------- whole runs


def run(script, folder, monkeypatch, **constants):
    monkeypatch.setattr(script, "OUTPUT_DIR", folder)
    for name, value in constants.items():
        monkeypatch.setattr(script, name, value)
    return script.main()


@SCRIPTS
def test_main(script, few_images, tmp_path, monkeypatch, capsys):
    results = run(script, tmp_path / "a", monkeypatch, EPOCHS=2, BATCH_SIZE=64)
    written = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert written["results"] == results and written["constants"]["BATCH_SIZE"] == 64
    assert results["test_above_floor"] == pytest.approx(results["test_loss"] - results["pixel_entropy"])
    parts = sum(results[f"test_{name}"] for name in ("reconstruction", "kl_z", "kl_v") if f"test_{name}" in results)
    assert parts == pytest.approx(results["test_loss"])
    for score in ("reconstruction", "demand", "swap"):
        digit, hue, both = (results[f"{score}_{part}"] for part in ("digit", "hue", "both"))
        assert 0 <= both <= min(digit, hue) <= max(digit, hue) <= 1
    common = {"loss", "reconstructions", "latent_usage", "control_on_demand", "control_by_swap"}
    own = {
        vae_continuous: {"plane", "latent_map", "neighborhoods"},
        vae_discrete: {"categories"},
        vae_joint: {"color_wheel", "categories", "finding"},
    }
    assert {path.stem for path in (tmp_path / "a").glob("*.png")} == common | own[script]
    moving = {vae_continuous: "circles.gif", vae_discrete: "steps.gif", vae_joint: "hue_circle.gif"}[script]
    assert (tmp_path / "a" / moving).stat().st_size > 0
    assert not (tmp_path / "a" / "checkpoint.pt").exists() and not list((tmp_path / "a").glob("*.tmp*"))
    log = capsys.readouterr().out
    assert log.startswith("DATASET = 'MNIST'") and "torch" in log and "epoch 2/2" in log

    if script is not vae_continuous:  # seven batches an epoch; the temperature goes on where the last epoch left it
        tau = [row["tau"] for row in written["history"]]
        assert tau == pytest.approx([math.exp(-0.0003 * 6), math.exp(-0.0003 * 13)])
        assert results["test_reconstruction"] != results["test_reconstruction_hard"]

    model = script.load_model(tmp_path / "a" / "model.pt")
    test = data.colored_set(train=False, device=torch.device("cpu"))
    assert metrics.reconstruction(model, metrics.codes_of(model, test), test).items() <= results.items()

    monkeypatch.setattr(script, "figures", lambda *args: None)
    assert run(script, tmp_path / "b", monkeypatch) == results  # to the last bit
    other = run(script, tmp_path / "c", monkeypatch, SEED=1, TAU_DECAY=1.0, BETA=0.5) if script is vae_joint else None
    if other:
        assert other["test_loss"] != results["test_loss"]
        assert json.loads((tmp_path / "c" / "metrics.json").read_text())["history"][0]["tau"] == 0.5  # TAU_MIN
        total = other["test_reconstruction"] + other["test_kl_z"] + other["test_kl_v"]  # BETA weighs no result
        assert other["test_loss"] == pytest.approx(total)


@SCRIPTS
def test_resumed_equals_uninterrupted(script, few_images, no_figures, tmp_path, monkeypatch, capsys):
    whole = run(script, tmp_path / "whole", monkeypatch, EPOCHS=3)
    save = runs.Run.checkpoint

    def save_and_die(self, history):
        save(self, history)
        if len(history) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(runs.Run, "checkpoint", save_and_die)
    with pytest.raises(SystemExit, match="130"):
        run(script, tmp_path / "cut", monkeypatch)
    assert not (tmp_path / "cut" / "metrics.json").exists()
    monkeypatch.setattr(runs.Run, "checkpoint", save)
    capsys.readouterr()
    assert run(script, tmp_path / "cut", monkeypatch) == whole
    assert "Going on after epoch 2" in capsys.readouterr().out
    weights = [script.load_model(tmp_path / name / "model.pt").state_dict() for name in ("whole", "cut")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@SCRIPTS
def test_a_finished_run_goes_on_to_more_epochs(script, few_images, no_figures, tmp_path, monkeypatch, capsys):
    whole = run(script, tmp_path / "whole", monkeypatch, EPOCHS=3)
    run(script, tmp_path / "longer", monkeypatch, EPOCHS=2)
    capsys.readouterr()
    assert run(script, tmp_path / "longer", monkeypatch, EPOCHS=3) == whole  # to the last bit
    out = capsys.readouterr().out
    assert "Going on after epoch 2 of the finished run" in out and "epoch 3/3" in out and "epoch 2/3" not in out
    weights = [script.load_model(tmp_path / name / "model.pt").state_dict() for name in ("whole", "longer")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    run(script, tmp_path / "longer", monkeypatch)  # the same again: trained again, as after an edit of the loss
    assert "epoch 1/3" in capsys.readouterr().out


@SCRIPTS
@pytest.mark.parametrize("decay", [0.0, 0.25])
def test_the_average_of_the_weights_is_scored_and_saved(script, decay, few_images, no_figures, tmp_path, monkeypatch):
    """Updated every tenth step of an epoch and after its last: here at 10, 14, 24, 28, 38 and 42 steps."""
    weights = []

    def keep(optimizer, *_):
        weights.append(optimizer.param_groups[0]["params"][0].detach().clone())

    hook = register_optimizer_step_post_hook(keep)
    try:
        results = run(script, tmp_path, monkeypatch, EPOCHS=3, BATCH_SIZE=30, EMA_DECAY=decay)
    finally:
        hook.remove()
    average = weights[0]
    for step, n in ((10, 10), (14, 4), (24, 10), (28, 4), (38, 10), (42, 4)):
        average = average.lerp(weights[step - 1], max(1 - decay ** (n / 10), 9 * n / (9 * n + step)))
    model = script.load_model(tmp_path / "model.pt")
    saved = model.encoder[1].weight
    assert len(weights) == 42 and torch.equal(saved, weights[-1]) == (decay == 0)
    assert (saved - average).abs().max() < 0.1 * (saved - weights[-1]).abs().max() + 1e-7
    test = data.colored_set(train=False, device=torch.device("cpu"))
    assert metrics.reconstruction(model, metrics.codes_of(model, test), test).items() <= results.items()
    last = json.loads((tmp_path / "metrics.json").read_text())["history"][-1]
    assert last["explained_variance"] == pytest.approx(metrics.explained_variance(model, test), abs=1e-6)
    kl = {name: value for name, value in results.items() if name in ("test_kl_z", "test_kl_v")}  # nothing is sampled
    assert kl and {name: last[name] for name in kl} == pytest.approx(kl)


@SCRIPTS
def test_pictures_start_at_the_mean_grey_level(script, few_images, no_figures, tmp_path, monkeypatch):
    run(script, tmp_path, monkeypatch, EPOCHS=1, BATCH_SIZE=400)  # a single step
    loss = json.loads((tmp_path / "metrics.json").read_text())["history"][0]["train_reconstruction"]
    mean = data.mean_level(data.colored_set(train=True, device=torch.device("cpu"))).item()
    entropy = -mean * math.log(mean) - (1 - mean) * math.log(1 - mean)
    assert loss == pytest.approx(2352 * entropy, rel=0.02)  # with torch's own biases about 2352 log 2


@SCRIPTS
def test_a_code_that_carries_nothing_is_reported_once(script, few_images, no_figures, tmp_path, monkeypatch, capsys):
    run(script, tmp_path, monkeypatch, EPOCHS=3, LEARNING_RATE=1e-9)
    log = capsys.readouterr().out
    assert log.count("Warning: the code carries almost nothing") == 1
    assert log.index("epoch 1/3") < log.index("Warning: the code") < log.index("epoch 2/3")


@pytest.mark.parametrize(
    ("script", "constants"),
    [
        (vae_joint, {"LATENT_DIM": 1, "N_VARIABLES": 1, "N_CATEGORIES": 2}),
        (vae_joint, {"LATENT_DIM": 8, "N_VARIABLES": 5, "N_CATEGORIES": 3, "HARD": True}),
        (vae_discrete, {"N_VARIABLES": 1, "N_CATEGORIES": 2}),
        (vae_discrete, {"BATCH_SIZE": 1}),
        (vae_continuous, {"LATENT_DIM": 1, "MATMUL_PRECISION": "highest"}),
        (vae_continuous, {"LATENT_DIM": 8, "BATCH_SIZE": 400}),
    ],
)
def test_unusual_constants_work(script, constants, few_images, tmp_path, monkeypatch):
    run(script, tmp_path, monkeypatch, EPOCHS=1, **constants)
    assert (tmp_path / "metrics.json").exists() and len(list(tmp_path.glob("*.png"))) >= 6


@SCRIPTS
def test_a_loss_that_is_not_finite_stops_the_run(script, few_images, tmp_path, monkeypatch):
    terms = script.elbo_terms
    monkeypatch.setattr(script, "elbo_terms", lambda model, x, *options: terms(model, x * math.nan, *options))
    with pytest.raises(SystemExit, match=r"The loss became nan in epoch 1, step 0"):
        run(script, tmp_path, monkeypatch, EPOCHS=1)
    assert not (tmp_path / "metrics.json").exists()


@SCRIPTS
def test_matrix_products_are_as_asked_in_training_and_exact_in_scores(
    script, few_images, no_figures, tmp_path, monkeypatch
):
    seen = []

    def watched(function, part):
        def watch(*args, **options):
            seen.append((part, torch.get_float32_matmul_precision()))
            return function(*args, **options)

        return watch

    monkeypatch.setattr(torch.Tensor, "backward", watched(torch.Tensor.backward, "training"))
    for name in ("codes_of", "elbo", "control_on_demand", "reconstruction"):
        monkeypatch.setattr(metrics, name, watched(getattr(metrics, name), "scores"))
    for asked in ("medium", "highest"):
        run(script, tmp_path / asked, monkeypatch, EPOCHS=1, BATCH_SIZE=200, MATMUL_PRECISION=asked)
        assert set(seen) == {("training", asked), ("scores", "highest")}
        seen.clear()
