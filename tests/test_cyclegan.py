import json
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import cyclegan_colors
import data
import metrics
import runs
from cyclegan_colors import Discriminator, Generator

# ------------------------------------------------------------------------------ networks and losses


def test_networks():
    discriminator, generator = Discriminator(), Generator()
    assert sum(p.numel() for p in discriminator.parameters()) == 421_057
    assert sum(p.numel() for p in generator.parameters()) == 12_227
    first, relu, pool = nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    convolutions = [first, relu, pool, nn.Conv2d(32, 64, 3, padding=1), relu, pool, nn.Flatten()]
    expected = [*convolutions, nn.Linear(3136, 128), relu, nn.Linear(128, 1)]
    assert [*map(str, discriminator)] == [*map(str, expected)]
    expected = [first, relu, nn.Conv2d(32, 64, 2, padding=1), relu, nn.Conv2d(64, 3, 4, padding=1)]
    assert [*map(str, generator)] == [*map(str, expected)]
    x = torch.rand(2, 3, 28, 28)
    assert generator(x).shape == x.shape and discriminator(x).shape == (2, 1)


def test_both_generators_are_loaded_clamped_and_frozen(tmp_path):
    torch.manual_seed(0)
    x, generators = torch.rand(2, 3, 28, 28), {"a_to_b": Generator(), "b_to_a": Generator()}
    runs.save_torch(tmp_path / "generators.pt", {name: g.state_dict() for name, g in generators.items()})
    both = cyclegan_colors.load_model(tmp_path / "generators.pt")
    for generator, loaded in zip(generators.values(), both, strict=True):
        assert isinstance(loaded, nn.Module) and not loaded.training
        assert torch.equal(loaded(x), generator(x).clamp(0, 1))
        copied = pickle.loads(pickle.dumps(loaded)).to("cpu", torch.float64)
        assert torch.allclose(copied(x.double()).float(), loaded(x), atol=1e-5)
        start = x.clone().requires_grad_()  # something else is trained through it
        loaded(start).sum().backward()
        assert start.grad.any() and all(p.grad is None for p in loaded.parameters())
    for content in ({"a_to_b": {}}, [1], {"a_to_b": generators["a_to_b"].state_dict()}):
        runs.save_torch(tmp_path / "generators.pt", content)
        with pytest.raises(SystemExit, match="does not hold the two generators"):
            cyclegan_colors.load_model(tmp_path / "generators.pt")


def test_losses():
    """Both sides' are BCE. The discriminator's has half the penalty on real images."""
    torch.manual_seed(0)
    discriminator = Discriminator()
    real, fake = torch.rand(2, 4, 3, 28, 28)
    bce, ones, zeros = F.binary_cross_entropy_with_logits, torch.ones(4, 1), torch.zeros(4, 1)
    expected = bce(discriminator(real), ones) + bce(discriminator(fake), zeros)
    loss = cyclegan_colors.discriminator_loss
    assert torch.allclose(loss(discriminator, real, fake, 0), expected)
    assert torch.allclose(cyclegan_colors.generator_loss(discriminator, fake), bce(discriminator(fake), ones))
    norms = []
    for image in real:
        image = image[None].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(discriminator(image).sum(), image)
        norms.append(gradient.square().sum())
    assert torch.allclose(loss(discriminator, real, fake, 10), expected + 10 / 2 * torch.stack(norms).mean())
    cycle = cyclegan_colors.cycle_loss(torch.square, fake, real)
    assert torch.allclose(cycle, (fake.square() - real).abs().mean())


# --------------------------------------------------------------------------------------- whole runs


def run(folder, monkeypatch, **constants):
    monkeypatch.setattr(cyclegan_colors, "OUTPUT_DIR", folder)
    for name, value in ({"DEVICE": "cpu", "BATCH_SIZE": 64} | constants).items():
        monkeypatch.setattr(cyclegan_colors, name, value)
    return cyclegan_colors.main()


def interrupt(*args):
    raise KeyboardInterrupt


def test_a_resumed_run_equals_an_uninterrupted_one(few_images, tmp_path, monkeypatch):
    few_images(400, 100)
    seen, colorize, whole, cut = [], data.colorize, tmp_path / "whole", tmp_path / "cut"
    monkeypatch.setattr(data, "colorize", lambda grey, colors: seen.append(grey) or colorize(grey, colors))
    results = run(whole, monkeypatch, EPOCHS=2, CYCLE_WEIGHT=1.0)
    written = json.loads((whole / "metrics.json").read_text())
    assert written["results"] == results and [row["step"] for row in written["history"]] == [0, 4, 8]
    assert written["code"].items() >= {"script": "cyclegan_colors", "images": 400}.items()
    assert results["oracle_a_to_b_color"] == 1 and results["identity_b_to_a_color"] == 0
    assert {"scores.png", "translations.png", "map.png", "training.gif"} <= {path.name for path in whole.iterdir()}

    # A's images and B's are different ones: 2 domains × 200 images, each epoch anew.
    batches = [batch for batch in seen if len(batch) in (64, 8)]  # test images: 50 or 10
    a, b = (torch.cat(batches[i:8:2]).flatten(1) for i in (0, 1))
    assert len(a) == len(b) == 200
    assert len(torch.cat([a, b]).unique(dim=0)) == len(data.load(train=True)[0].flatten(1).unique(dim=0))

    monkeypatch.setattr(cyclegan_colors, "figures", lambda *args: None)
    checkpoint = runs.Run.checkpoint
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runs.Run, "checkpoint", lambda *args: (checkpoint(*args), interrupt()))
        run(cut, monkeypatch)
    assert run(cut, monkeypatch) == results
    first, second = (torch.load(folder / "generators.pt", weights_only=True) for folder in (whole, cut))
    assert all(torch.equal(first[g][name], second[g][name]) for g in first for name in first[g])
    assert (cut / "generators.pt").stat().st_size < 150_000 and not (cut / "checkpoint.pt").exists()


def test_rates_betas_and_averages(few_images, before_steps, tmp_path, monkeypatch):
    """Of eight updates: the rate falls after the fourth."""
    few_images(64, 100)
    monkeypatch.setattr(metrics, "evaluate_translation", interrupt)
    steps, weights = [], []

    def before(optimizer, *_):
        steps.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"]))

    def after(optimizer, *_):
        weights.append(optimizer.param_groups[0]["params"][0].detach().clone())

    before_steps(before)
    hook = register_optimizer_step_post_hook(after)
    settings = {"BETA1": 0.25, "BETA2": 0.75, "DECAY_FROM": 0.5, "LEARNING_RATE": 0.001, "EMA_DECAY": 0.5}
    try:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, monkeypatch, EPOCHS=2, BATCH_SIZE=8, **settings)
    finally:
        hook.remove()
    assert [betas for _, betas in steps] == [(0.25, 0.75)] * 16  # of the discriminators, of the generators
    assert [lr for lr, _ in steps[::2]] == pytest.approx([0.001] * 5 + [0.00075, 0.0005, 0.00025])
    assert [cyclegan_colors.rate(step, 100, 1.0) for step in (0, 50, 99)] == [1, 1, 1]
    assert [cyclegan_colors.growth(step, 100, 0.5) for step in (0, 25, 50, 99)] == [0, 0.5, 1, 1]
    weights = weights[1::2]  # the first layer of a_to_b
    average = weights[0]
    for step, weight in enumerate(weights):
        average = average.lerp(weight, max(1 - 0.5, 9 / (10 + step)))
    saved = torch.load(tmp_path / "generators.pt", weights_only=True)
    assert len(weights) == 8 and torch.allclose(saved["a_to_b"]["0.weight"], average, atol=1e-6)


def test_the_gradients_of_a_step_are_those_of_the_documented_losses(few_images, before_steps, tmp_path, monkeypatch):
    """Of both optimizers, in the second and third of twelve steps; the penalty is on every second."""
    few_images(400, 100)
    batches, seen, pairs, colored = [], {}, [], data.ColoredSet.colored
    monkeypatch.setattr(data.ColoredSet, "colored", lambda *args: batches.append(colored(*args)) or batches[-1])

    def copies(kind, parameters):
        pair = nn.ModuleList([kind(), kind()])
        for ours, theirs in zip(pair.parameters(), parameters, strict=True):
            ours.data.copy_(theirs)
        return pair

    def compare(optimizer, *_):
        parameters, step = optimizer.param_groups[0]["params"], len(batches) // 2 - 1
        seen[len(parameters)] = parameters  # 12 of the generators, 16 of the discriminators
        if step == 0:
            return
        generators, discriminators = copies(Generator, seen[12]), copies(Discriminator, seen[16])
        (to_b, to_a), (on_a, on_b), bce = generators, discriminators, F.binary_cross_entropy_with_logits
        (real_a, real_b), loss, ones = (x.clone().requires_grad_() for x in batches[-2:]), 0, torch.ones(64, 1)
        for there, back, source, target, on in ((to_a, to_b, real_b, real_a, on_a), (to_b, to_a, real_a, real_b, on_b)):
            fake = there(source)
            if len(parameters) == 12:
                loss = loss + bce(on(fake), ones) + 7 * step / 12 / 0.4 * F.l1_loss(back(fake), source)
            else:
                (gradient,) = torch.autograd.grad(on(target).sum(), target, create_graph=True)
                penalty = gradient.square().sum((1, 2, 3)).mean() if step == 2 else 0
                loss = loss + bce(on(target), ones) + bce(on(fake), 0 * ones) + 3 * 2 / 2 * penalty
        ours = generators if len(parameters) == 12 else discriminators
        gradients = torch.autograd.grad(loss, [*ours.parameters()])
        pairs.extend(zip([p.grad.clone() for p in parameters], gradients, strict=True))
        if len(pairs) == 2 * (16 + 12):
            interrupt()

    before_steps(compare)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, monkeypatch, CYCLE_WEIGHT=7, DECAY_FROM=0.4, R1_WEIGHT=3, R1_EVERY=2, PRECISION="float32")
    assert all((a - b).norm() < 1e-3 * b.norm() for a, b in pairs)


def test_a_loss_that_is_not_finite_ends_the_run(few_images, tmp_path, monkeypatch):
    few_images(400, 100)
    monkeypatch.setattr(cyclegan_colors, "generator_loss", lambda discriminator, fake: fake.sum() * math.nan)
    with pytest.raises(SystemExit, match=r"^loss is nan in epoch 1: .*LEARNING_RATE"):
        run(tmp_path, monkeypatch, EPOCHS=1)
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}


def test_unusual_constants_work(few_images, no_figures, tmp_path, monkeypatch):
    few_images(400, 100)
    run(tmp_path, monkeypatch, EPOCHS=1, BATCH_SIZE=199, R1_WEIGHT=0.0, CYCLE_WEIGHT=0.0)  # a batch of one at last
    assert (tmp_path / "metrics.json").exists()


def test_an_impossible_palette_is_refused_before_training(monkeypatch, tmp_path):
    monkeypatch.setattr(data, "DOMAIN_B", ("red", *data.DOMAIN_B[1:]))
    with pytest.raises(SystemExit, match=r"^DOMAIN_B in data\.py [^\n]*the same colour"):
        run(tmp_path, monkeypatch)
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}
