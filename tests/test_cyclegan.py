import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cyclegan_colors
import data
import metrics
import runs
from cyclegan_colors import Discriminator, Generator


def convolutions(module):
    return [
        (m.in_channels, m.out_channels, m.kernel_size, m.stride, m.padding) for m in module if isinstance(m, nn.Conv2d)
    ]


def test_networks():
    discriminator, generator = Discriminator(), Generator()
    assert sum(p.numel() for p in discriminator.parameters()) == 421_057
    assert sum(p.numel() for p in generator.parameters()) == 12_227
    same = ((3, 3), (1, 1), (1, 1))
    assert convolutions(discriminator) == [(3, 32, *same), (32, 64, *same)]
    assert convolutions(generator) == [
        (3, 32, *same),
        (32, 64, (2, 2), (1, 1), (1, 1)),
        (64, 3, (4, 4), (1, 1), (1, 1)),
    ]
    names = [type(m).__name__ for m in discriminator]
    assert names == ["Conv2d", "ReLU", "MaxPool2d"] * 2 + ["Flatten", "Linear", "ReLU", "Linear"]
    assert [(m.in_features, m.out_features) for m in discriminator if isinstance(m, nn.Linear)] == [
        (3136, 128),
        (128, 1),
    ]
    assert [type(m).__name__ for m in generator] == ["Conv2d", "ReLU", "Conv2d", "ReLU", "Conv2d"]
    x = torch.rand(2, 3, 28, 28)
    assert generator(x).shape == x.shape and discriminator(x).shape == (2, 1)


def test_a_generator_stretches_its_input_to_the_range(tmp_path):
    torch.manual_seed(0)
    x, generators = torch.rand(2, 3, 28, 28), {}
    for name, (black, full) in {"a_to_b": (-1.0, 3.0), "b_to_a": (0.5, 0.75)}.items():
        generators[name] = Generator((black, full))
        layers = nn.Sequential(*generators[name])
        assert torch.allclose(generators[name](x), layers(black * (1 - x) + full * x), atol=1e-5)
        assert not torch.allclose(generators[name](x), layers(x), atol=1e-2)
    plain = Generator()
    assert torch.equal(plain(x), nn.Sequential(*plain)(x))
    runs.save_torch(tmp_path / "generators.pt", {name: g.state_dict() for name, g in generators.items()})
    loaded = cyclegan_colors.load_model(tmp_path / "generators.pt")  # the ranges are saved, too
    for generator, translate in zip(generators.values(), loaded, strict=True):
        assert torch.equal(translate(x), generator(x).clamp(0, 1))


@pytest.mark.parametrize("he_weights", [True, False])
def test_the_discriminators_first_weights_are_he_et_als_or_torchs(he_weights):
    torch.manual_seed(0)
    layers = [m for m in Discriminator(he_weights) if isinstance(m, nn.Conv2d | nn.Linear)]
    for layer in layers:
        inputs = layer.weight[0].numel()  # of a unit
        variance = 2 / inputs if he_weights else 1 / (3 * inputs)  # torch: uniform to ± inputs ** -0.5
        assert layer.weight.std().item() == pytest.approx(variance**0.5, rel=0.2)
        assert layer.bias.any() != he_weights
    assert len(layers) == 4


def test_the_discriminators_loss_is_bce_plus_half_the_penalty_on_real_images():
    torch.manual_seed(0)
    discriminator = Discriminator()
    real, fake = torch.rand(2, 4, 3, 28, 28)
    bce = F.binary_cross_entropy_with_logits
    ones, zeros = torch.ones(4, 1), torch.zeros(4, 1)
    expected = bce(discriminator(real), ones) + bce(discriminator(fake), zeros)
    loss = cyclegan_colors.discriminator_loss
    assert torch.allclose(loss(discriminator, real, fake, 0), expected)

    norms = []
    for image in real:
        image = image[None].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(discriminator(image).sum(), image)
        norms.append(gradient.square().sum())
    penalty = torch.stack(norms).mean()
    assert torch.allclose(loss(discriminator, real, fake, 10), expected + 10 / 2 * penalty)


def test_the_defaults_are_the_homeworks_where_it_speaks():
    constants = runs.constants(vars(cyclegan_colors), data.DOMAINS)
    assert (constants["BATCH_SIZE"], constants["LEARNING_RATE"]) == (120, 0.0003)
    assert (constants["IMAGES_PER_EPOCH"], constants["EPOCHS"]) == (30_000, 32)  # an epoch: one pass over a half
    assert [constants[name] for name in ("R1_EVERY", "CYCLE_WEIGHT", "REFINE_WEIGHT")] == [4, 2, 40]
    assert [constants[name] for name in ("BETA1", "BETA2", "REFINE_FROM", "DECAY_FROM")] == [0.5, 0.95, 0.35, 0.7]


def test_the_domains_wear_the_same_colors_shifted_by_a_digit():
    a, b = data.palette("DOMAIN_A", data.DOMAIN_A), data.palette("DOMAIN_B", data.DOMAIN_B)
    assert torch.equal(b, a.roll(-1, 0)) and len(a.unique(dim=0)) == 10


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (data.DOMAIN_A[:9], "must be a tuple of ten"),
        ((*data.DOMAIN_A[:9], "rde"), "'rde', which is not a CSS colour"),
        ((*data.DOMAIN_A[:9], "red"), "digits 0 and 9 the same colour"),
        (list(data.DOMAIN_A), "must be a tuple of ten"),
        ((*data.DOMAIN_A[:9], "black"), "has 'black', which cannot be seen"),
    ],
)
def test_impossible_palettes_are_refused(names, sentence, monkeypatch, tmp_path):
    monkeypatch.setattr(cyclegan_colors, "OUTPUT_DIR", tmp_path)
    monkeypatch.setattr(data, "DOMAIN_B", names)
    with pytest.raises(SystemExit, match=sentence):
        cyclegan_colors.main()
    assert {path.name for path in tmp_path.iterdir()} <= {".lock"}


def test_colors_that_are_near_get_a_warning(capsys):
    data.palette("DOMAIN_A", (*data.DOMAIN_A[:9], "snow"))
    assert capsys.readouterr().out == ""
    data.palette("DOMAIN_A", (*data.DOMAIN_A[:8], "snow", "white"))
    assert "snow and white of DOMAIN_A are only 0.03 apart" in capsys.readouterr().out


def test_scores_of_known_translations(test_set):
    grey, digits = test_set.images[:1000], test_set.digits[:1000]
    a, b = data.palette("A", data.DOMAIN_A), data.palette("B", data.DOMAIN_B)
    truth = data.colorize(grey, b[digits])
    assert torch.allclose(metrics.color_of(truth, grey), b[digits], atol=1e-5)
    oracle, right = metrics.translation_scores("oracle", truth, grey, digits, b)
    assert (
        oracle["oracle_color"] == oracle["oracle_exact"] == 1
        and oracle["oracle_digit"] > 0.98
        and oracle["oracle_both"] == right.double().mean()
    )
    assert oracle["oracle_l1"] == 0 and oracle["oracle_psnr"] is None
    nothing, _ = metrics.translation_scores("identity", data.colorize(grey, a[digits]), grey, digits, b)
    assert (
        nothing["identity_color"] == nothing["identity_exact"] == 0
        and nothing["identity_digit"] == oracle["oracle_digit"]
    )
    darker, _ = metrics.translation_scores("x", truth * 0.88, grey, digits, b)
    assert darker["x_color"] == 1
    # teal's and purple's error is 0.08, the others' 0.12 or more
    far = 0.12 * b.norm(dim=1) > metrics.COLOR_TOLERANCE
    assert darker["x_exact_by_digit"] == (~far).double().tolist() and darker["x_both"] <= darker["x_exact"] < 1
    assert darker["x_psnr"] == pytest.approx(-10 * torch.log10((0.12 * truth).square().mean()).item(), rel=1e-4)
    assert len(darker["x_digit_by_digit"]) == len(darker["x_color_by_digit"]) == 10
    assert torch.equal(metrics.color_map(truth, grey, digits, b), torch.eye(10))
    shifted = data.colorize(grey, b[(digits + 3) % 10])
    assert torch.equal(metrics.color_map(shifted, grey, digits, b), torch.eye(10).roll(3, 1))


SMALL = {"IMAGES_PER_EPOCH": 32, "BATCH_SIZE": 8}  # epochs of 4 updates


def run(folder, monkeypatch, **constants):
    monkeypatch.setattr(cyclegan_colors, "OUTPUT_DIR", folder)
    for name, value in ({"DEVICE": "cpu", "BATCH_SIZE": 64} | constants).items():
        monkeypatch.setattr(cyclegan_colors, name, value)
    return cyclegan_colors.main()


def test_main_and_resume(few_images, tmp_path, monkeypatch):
    seen = []
    colorize = data.colorize
    monkeypatch.setattr(data, "colorize", lambda grey, colors: seen.append(grey) or colorize(grey, colors))
    whole = run(tmp_path / "whole", monkeypatch, EPOCHS=2, CYCLE_WEIGHT=1.0)
    written = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    assert written["results"] == whole and [row["step"] for row in written["history"]] == [0, 4, 8]
    assert whole["oracle_a_to_b_color"] == 1 and whole["identity_b_to_a_color"] == 0
    assert (tmp_path / "whole" / "training.gif").stat().st_size > 0
    assert {path.name for path in (tmp_path / "whole").glob("*.png")} == {"scores.png", "translations.png", "map.png"}

    # A's images and B's are different ones: 2 domains × 200 images, each epoch anew.
    batches = [batch for batch in seen if len(batch) in (64, 8)]  # 200 in batches of 64; test images come by 50 or 10
    a, b = (torch.cat(batches[i:8:2]).flatten(1) for i in (0, 1))
    assert len(a) == len(b) == 200
    assert len(torch.cat([a, b]).unique(dim=0)) == len(data.load(train=True)[0].flatten(1).unique(dim=0))

    a_to_b, b_to_a = cyclegan_colors.load_model(tmp_path / "whole" / "generators.pt")
    x = 3 * torch.randn(2, 3, 28, 28)
    for translate in (a_to_b, b_to_a):
        assert translate(x).shape == x.shape and translate(x).min() >= 0 and translate(x).max() <= 1
    assert (tmp_path / "whole" / "generators.pt").stat().st_size < 150_000

    print_row = cyclegan_colors.print_row

    def print_and_die(row, steps):
        print_row(row, steps)
        if row["epoch"] == 1:  # its checkpoint is there already
            raise KeyboardInterrupt

    monkeypatch.setattr(cyclegan_colors, "print_row", print_and_die)
    monkeypatch.setattr(cyclegan_colors, "figures", lambda *args: None)
    with pytest.raises(SystemExit, match="130"):
        run(tmp_path / "cut", monkeypatch)
    monkeypatch.setattr(cyclegan_colors, "print_row", print_row)
    assert run(tmp_path / "cut", monkeypatch) == whole
    first, second = (torch.load(tmp_path / name / "generators.pt", weights_only=True) for name in ("whole", "cut"))
    assert all(torch.equal(first[g][name], second[g][name]) for g in first for name in first[g])


def test_the_rate_falls_to_zero(few_images, no_figures, tmp_path, monkeypatch):
    monkeypatch.setattr(cyclegan_colors, "DECAY_FROM", 0.5)
    assert [cyclegan_colors.rate(step, 100) for step in (0, 50, 75, 100)] == [1, 1, 0.5, 0]
    make, domains = cyclegan_colors.make_domains, []
    monkeypatch.setattr(cyclegan_colors, "make_domains", lambda *args: domains.extend(make(*args)) or tuple(domains))
    run(tmp_path, monkeypatch, EPOCHS=2, **SMALL)  # 8 updates
    for domain in domains:
        for optimizer in (domain.generator_optimizer, domain.discriminator_optimizer):
            assert optimizer.param_groups[0]["lr"] == pytest.approx(cyclegan_colors.LEARNING_RATE / 4)


@pytest.mark.parametrize(("begins", "n"), [(0.5, 4), (1.0, 8)])
def test_momentum_begins_after_a_share_of_the_run(begins, n, few_images, no_figures, tmp_path, monkeypatch):
    """In all four networks, from the update on at which that share is reached; 8 updates here."""
    make, betas = cyclegan_colors.make_domains, []

    def make_and_watch(*args):
        domains = make(*args)
        for domain in domains:
            for optimizer in (domain.generator_optimizer, domain.discriminator_optimizer):
                optimizer.register_step_pre_hook(lambda self, *_: betas.append(self.param_groups[0]["betas"]))
        return domains

    monkeypatch.setattr(cyclegan_colors, "make_domains", make_and_watch)
    run(tmp_path, monkeypatch, EPOCHS=2, BETA1=0.25, BETA2=0.75, REFINE_FROM=begins, **SMALL)
    assert betas == [(0.25, 0.75)] * 4 * n + [(0.9, 0.75)] * 4 * (8 - n)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_the_averaged_generators_are_scored_and_saved(decay, few_images, no_figures, tmp_path, monkeypatch):
    make, weights, domains = cyclegan_colors.make_domains, [], []

    def make_and_keep(*args):
        domains.extend(make(*args))
        optimizer, generator = domains[1].generator_optimizer, domains[1].generator
        optimizer.register_step_post_hook(lambda *_: weights.append(generator[0].weight.detach().clone()))
        return tuple(domains)

    monkeypatch.setattr(cyclegan_colors, "make_domains", make_and_keep)
    results = run(tmp_path, monkeypatch, EPOCHS=4, EMA_DECAY=decay, INPUT_RANGE=(-0.5, 2.0), **SMALL)
    average = weights[0]
    for step, weight in enumerate(weights):
        share = max(1 - decay, 9 / (10 + step))
        average = (1 - share) * average + share * weight
    generators = torch.load(tmp_path / "generators.pt", weights_only=True)
    assert all(generators[name]["input_range"].tolist() == [-0.5, 2.0] for name in ("a_to_b", "b_to_a"))
    saved = generators["a_to_b"]["0.weight"]
    assert len(weights) == 16 and torch.allclose(saved, average, atol=1e-6)
    assert torch.equal(saved, weights[-1]) == (decay == 0)
    a_to_b, _ = cyclegan_colors.load_model(tmp_path / "generators.pt")
    a, b = (data.palette("", names) for names in (data.DOMAIN_A, data.DOMAIN_B))
    direction, test = metrics.Direction(a_to_b, a, b), data.load(train=False)
    scores, _ = metrics.translation_scores("a_to_b", direction.outputs(*test), *test, b)
    assert scores["a_to_b_l1"] == pytest.approx(results["a_to_b_l1"], rel=1e-5)


def test_the_cycle_loss_brings_images_back(few_images, no_figures, tmp_path, monkeypatch):
    grey, digits = data.load(train=False)
    a, b = (data.colorize(grey, data.palette("", names)[digits]) for names in (data.DOMAIN_A, data.DOMAIN_B))
    distances = {}
    for weight in (0.0, 100.0):
        run(tmp_path / str(weight), monkeypatch, EPOCHS=3, BATCH_SIZE=8, LEARNING_RATE=0.002, CYCLE_WEIGHT=weight)
        a_to_b, b_to_a = cyclegan_colors.load_model(tmp_path / str(weight) / "generators.pt")
        distances[weight] = (b_to_a(a_to_b(a)) - a).abs().mean() + (a_to_b(b_to_a(b)) - b).abs().mean()
    assert distances[100] < 0.8 * distances[0]  # without effect the two would be equal


@pytest.mark.parametrize(("weight", "begins"), [(7.0, 0.3), (7.0, 0.0), (0.0, 0.0)])
def test_each_cycle_trains_both_generators(weight, begins, few_images, tmp_path, monkeypatch):
    """The gradients of the first step are those of both adversarial losses and both cycles together.

    The squared distance is in them only if it counts from the first step on.
    """
    make, domains, pairs = cyclegan_colors.make_domains, [], []

    def gradients(*_):
        a, b = domains
        networks = [b.generator, a.generator]
        loss = 0
        for domain, other in ((a, b), (b, a)):
            fake = domain.generator(other.batch)
            loss = loss + F.binary_cross_entropy_with_logits(domain.discriminator(fake), torch.ones(len(fake), 1))
            loss = loss + weight * F.l1_loss(other.generator(fake), other.batch)
            loss = loss + (20 if begins == 0 else 0) * F.mse_loss(other.generator(fake), other.batch)
        parameters = [p for network in networks for p in network.parameters()]
        pairs.extend(zip([p.grad.clone() for p in parameters], torch.autograd.grad(loss, parameters), strict=True))
        raise KeyboardInterrupt  # before the first update of a generator

    def make_and_watch(*args):
        domains.extend(make(*args))
        domains[0].generator_optimizer.register_step_pre_hook(gradients)
        return tuple(domains)

    monkeypatch.setattr(cyclegan_colors, "make_domains", make_and_watch)
    with pytest.raises(SystemExit, match="130"):
        edits = {"CYCLE_WEIGHT": weight, "REFINE_WEIGHT": 20.0, "REFINE_FROM": begins}
        run(tmp_path, monkeypatch, PRECISION="float32", **edits)
    assert len(pairs) == 12 and all((a - b).norm() < 1e-3 * b.norm() for a, b in pairs)


def test_a_loss_that_is_not_finite_stops_the_run(few_images, tmp_path, monkeypatch):
    loss = cyclegan_colors.discriminator_loss
    monkeypatch.setattr(cyclegan_colors, "discriminator_loss", lambda *args: loss(*args) * float("nan"))
    with pytest.raises(SystemExit, match="The loss became nan in epoch 1, step 0"):
        run(tmp_path, monkeypatch, EPOCHS=1)
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize(
    "constants", [{"BATCH_SIZE": 1, "IMAGES_PER_EPOCH": 3}, {"R1_WEIGHT": 0.0, "IMAGES_PER_EPOCH": 90}]
)
def test_unusual_constants_work(constants, few_images, tmp_path, monkeypatch):
    run(tmp_path, monkeypatch, EPOCHS=1, **constants)
    assert len(list(tmp_path.glob("*.png"))) == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HE_WEIGHTS", 1),
        ("INPUT_RANGE", (1.0, 1.0)),
        ("INPUT_RANGE", [-1.0, 1.0]),
        ("INPUT_RANGE", (0.0, float("inf"))),
        ("R1_WEIGHT", -1),
        ("R1_EVERY", 0),
        ("BETA1", 1),
        ("BETA2", 1),
        ("REFINE_FROM", 1.5),
        ("REFINE_WEIGHT", -1.0),
        ("EMA_DECAY", 1.0),
        ("CYCLE_WEIGHT", float("inf")),
        ("IMAGES_PER_EPOCH", 0),
        ("IMAGES_PER_EPOCH", 2.5),
        ("BATCH_SIZE", 0),
        ("BATCH_SIZE", 201),
        ("EPOCHS", 0),
        ("LEARNING_RATE", -0.1),
        ("SEED", 0.5),
        ("PRECISION", "float16"),
    ],
)
def test_an_impossible_constant_is_refused(name, value, few_images, tmp_path, monkeypatch):
    (tmp_path / "metrics.json").write_text("old")
    with pytest.raises(SystemExit, match=f"{name} is .*: it must.*\\.$"):
        run(tmp_path, monkeypatch, **{name: value})
    assert (tmp_path / "metrics.json").read_text() == "old" and not list(tmp_path.glob("*.pt"))


def test_load_model_refuses_another_file(tmp_path):
    runs.save_torch(tmp_path / "x.pt", {"a_to_b": {}})
    with pytest.raises(SystemExit, match="does not hold the two generators"):
        cyclegan_colors.load_model(tmp_path / "x.pt")


def test_the_generators_loss_is_bce_with_one():
    torch.manual_seed(0)
    discriminator, fake = Discriminator(), torch.rand(4, 3, 28, 28)
    expected = F.binary_cross_entropy_with_logits(discriminator(fake), torch.ones(4, 1))
    assert torch.allclose(cyclegan_colors.generator_loss(discriminator, fake), expected)
