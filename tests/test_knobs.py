import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Categorical, kl_divergence

import data
import metrics
import vae_joint
import vae_knobs
from vae_knobs import KnobVAE

UNITS = (14.0, 15.0, 0.35)
TINY = {"EPOCHS": 2, "BATCH_SIZE": 100, "WARM_UP_EPOCHS": (1, 1)}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return KnobVAE(3, 10, UNITS)


@pytest.fixture(scope="module")
def images(test_set):
    return test_set.colored(slice(60))


def logits(n=60, k=10):
    return torch.randn(2, n, k, generator=torch.Generator().manual_seed(1)).log_softmax(-1)


# ----------------------------------------------------------------------------------------- pictures


def bar(width, shear=0.0, size=16):
    """A bar, anti-aliased, sheared by so many pixels to the right per pixel up: (1, 1, 28, 28)."""
    x, y = torch.arange(28.0) - 13.5, torch.arange(28.0)[:, None] - 13.5
    across = (width / 2 + 0.5 - (x + shear * y).abs()).clamp(0, 1)
    return (across * (y.abs() < size / 2))[None, None]


@pytest.mark.parametrize("shear", (-0.4, 0.0, 0.25))
def test_slant_is_the_shear_of_a_bar(shear):
    assert metrics.slant_of(bar(3, shear)).item() == pytest.approx(math.degrees(math.atan(shear)), abs=0.3)
    assert metrics.width_of(bar(5, shear)).item() == pytest.approx(metrics.width_of(bar(5)).item(), rel=0.02)


def test_width_and_weight_of_bars():
    for width in (2, 4, 6):
        assert metrics.width_of(bar(width)).item() == pytest.approx(math.sqrt((width**2 - 1) / 12))
        area, outline = 26 * width, 2 * (26 + width)  # its short ends are edges, too
        assert metrics.weight_of(bar(width, size=26)).item() == pytest.approx(2 * area / outline, rel=0.03)
    assert metrics.slant_of(torch.zeros(1, 3, 28, 28)).isnan().all()


def test_specks_are_the_ink_outside_the_largest_part():
    x = torch.zeros(3, 3, 28, 28)
    x[:, 0, 4:14, 4:8] = 1  # 40 pixels
    x[1, 2, 20:25, 20:22] = 1  # 10 pixels elsewhere
    x[2, 1, 14, 8] = 1  # touches a corner: eight neighbours
    assert metrics.specks_of(x).tolist() == pytest.approx([0, 0.2, 0], abs=1e-6)


@pytest.mark.parametrize(("knob", "step", "error"), (("slant", 10, 0.5), ("width", 15, 1.0), ("weight", 0.3, 0.15)))
def test_deformed_test_images_measure_as_asked(test_set, knob, step, error):
    x, i = test_set.images[:500, None] / 255, list(metrics.KNOB_STEPS).index(knob)
    for sign in (-1, 1):
        change = metrics.styles_of(metrics.deformed(x, knob, sign * step)) - metrics.styles_of(x)
        asked = sign * 100 * math.log1p(step / 100) if knob == "width" else sign * step
        assert change[:, i].median().item() == pytest.approx(asked, abs=error)


class Draughtsman(nn.Module):
    """A model whose codes are test images' numbers and three moves, and which deforms exactly."""

    def __init__(self, test):
        super().__init__()
        self.images = test.images[:, None] / 255

    def turned(self, codes, knob, step):
        codes = codes.clone()
        codes[:, 1 + list(metrics.KNOB_STEPS).index(knob)] += step
        return codes

    def decode(self, codes):
        x = self.images[codes[:, 0].long()]
        for i, knob in enumerate(metrics.KNOB_STEPS):
            if step := codes[0, 1 + i].item():
                x = metrics.deformed(x, knob, step)
        return x


def test_knobs_that_deform_exactly_have_no_crosstalk(test_set):
    test = test_set[:300]
    codes = torch.cat([torch.arange(300.0)[:, None], torch.zeros(300, 3)], 1)
    results = metrics.style_knobs(Draughtsman(test), codes, test)
    assert results["crosstalk"] == pytest.approx(0, abs=1e-4)
    assert results["knob_slant_error"] < 1 and results["knob_width_error"] < 2 and results["knob_weight_error"] < 0.2
    assert [results[f"knob_{knob}_gain"] for knob in metrics.KNOB_STEPS] == pytest.approx([1] * 3, abs=0.1)


# -------------------------------------------------------------------------------------------- model


def test_latents_have_names_and_cover_the_code(model, images):
    names = ["hue", "slant", "width", "weight", "digit", "style1", "style2"]
    assert [*model.latents] == names and model.kl(images).shape == (60, 7)
    columns = [i for part in model.latents.values() for i in range(part.start, part.stop)]
    assert columns == list(range(35)) and model.code(images).shape == (60, 35)
    assert sum(p.numel() for p in model.parameters()) == sum(
        p.numel() for p in vae_joint.JointVAE(5, 3, 10).parameters()
    )


def test_a_knob_moves_its_own_column_by_its_unit(model):
    code = torch.zeros(4, 35)
    for i, (knob, step) in enumerate((("slant", 14.0), ("width", 100 * math.expm1(0.15)), ("weight", -0.35))):
        moved = model.turned(code, knob, step)
        assert moved[:, 2 + i].tolist() == pytest.approx([-1 if step < 0 else 1] * 4)
        assert moved.abs().sum() == pytest.approx(4) and code.abs().sum() == 0


# --------------------------------------------------------------------------------------------- loss


def test_clustering_loss_against_distributions():
    log_q, copy = logits()
    q = Categorical(logits=log_q)
    kl, entropy = kl_divergence(q, Categorical(logits=copy)).sum(), q.entropy().sum()
    of_mean = 60 * Categorical(probs=log_q.exp().mean(0)).entropy()
    for agreement, balance in ((5, 4), (1, 0), (0, 1)):
        loss = vae_knobs.clustering_loss(log_q, copy, agreement, balance)
        assert torch.allclose(loss, agreement * kl + entropy - balance * of_mean, rtol=1e-4)


def test_contrastive_loss_of_found_and_of_equal_copies():
    z = torch.eye(8, 64)
    found = vae_knobs.contrastive_loss(torch.cat([z, z]), 0.02).item()
    equal = vae_knobs.contrastive_loss(torch.ones(16, 64), 0.2).item()
    assert found == pytest.approx(0, abs=1e-4) and equal == pytest.approx(8 * math.log(8), rel=1e-5)


def test_the_digit_heard_trains_only_the_decoder(model, images):
    log_loss = vae_knobs.heard_term(model, model.code(images))
    log_loss.backward()
    assert all(p.grad is None for p in [*model.encoder.parameters(), *model.categorical_head.parameters()])
    assert all(p.grad.abs().sum() > 0 for p in model.decoder.parameters())
    assert log_loss.item() > 0 and all(p.requires_grad for p in model.parameters())


def test_centring_is_zero_for_centred_styles_and_counts_no_noise():
    log_q = torch.full((2000, 10), -30.0)
    log_q[torch.arange(2000), torch.arange(2000) % 10] = 0
    offset = (torch.arange(2000) % 10)[:, None].expand(-1, 3) / 10
    assert vae_knobs.centring_term(log_q, torch.zeros(2000, 3)) == 0
    expected = 2000 * 3 * (torch.arange(10.0) / 10).square().mean().item()
    assert vae_knobs.centring_term(log_q, offset).item() == pytest.approx(expected, rel=0.05)
    noise = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    assert abs(vae_knobs.centring_term(log_q, noise).item()) < 20  # a mean's own square: 30


# ---------------------------------------------------------------------------------------------- run


def run(folder, monkeypatch, **constants):
    monkeypatch.setattr(vae_knobs, "OUTPUT_DIR", folder)
    for name, value in (TINY | constants).items():
        monkeypatch.setattr(vae_knobs, name, value)
    return vae_knobs.main()


def test_a_whole_run(few_images, tmp_path, monkeypatch):
    results = run(tmp_path, monkeypatch)
    assert {"digit_accuracy", "drawings_digit", "knob_both", "knob_slant_error", "crosstalk"} <= results.keys()
    assert len(results["knobs_kept"]) == 14
    figures = {"finding.png", "units.png", "confusion.png", "knobs.gif", "loss.png"}
    assert figures <= {path.name for path in tmp_path.iterdir()}
    model = vae_knobs.load_model(tmp_path / "model.pt")
    assert model.units.tolist() == pytest.approx(UNITS, rel=1e-3) and (tmp_path / "model.pt").stat().st_size < 6e6
    x = data.colored_set(train=False, device=torch.device("cpu")).colored(slice(300))
    category = model.code(x)[:, model.latents["digit"]].argmax(1)
    assert torch.bincount(category, minlength=10).tolist() == [sum(row) for row in results["category_counts"]]


def test_the_gradient_of_a_step_is_that_of_the_documented_loss(few_images, before_steps, tmp_path, monkeypatch):
    """Of the last of four steps, after one epoch of contrastive loss and two of clustering."""
    made, elastic, contrastive, seen = [], [], [], {}
    copies, loss_of = vae_knobs.known_copies, vae_knobs.contrastive_loss

    def recorded(train, index, bounds, **options):
        made[:] = train, index, bounds, *copies(train, index, bounds, **options), torch.get_rng_state()
        elastic.append(options["elastic"])
        return made[3:6]

    def keep(optimizer, *_):
        seen.update(optimizer.param_groups[0])
        if len(elastic) == 16:
            raise KeyboardInterrupt

    monkeypatch.setattr(vae_knobs, "known_copies", recorded)
    monkeypatch.setattr(vae_knobs, "contrastive_loss", lambda *args: contrastive.append(1) or loss_of(*args))
    # The fourth is large, as the gradient through an untrained decoder is small.
    settings = {"CLUSTER_WEIGHT": 2, "CODE_WEIGHT": 3, "PICTURE_WEIGHT": 5, "HEARD_WEIGHT": 7e4, "CENTRE_WEIGHT": 11}
    before_steps(keep)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, monkeypatch, EPOCHS=1, WARM_UP_EPOCHS=(1, 2), PRECISION="float32", **settings)
    train, index, bounds, copy, moved, share, rng = made
    assert elastic == [0.7] * 12 + [1.2] * 4 and len(contrastive) == 4 and seen["lr"] == pytest.approx(0.0015 / 2)
    assert bounds.tolist() == pytest.approx([math.tan(math.radians(1.4 * 14)), 1.4 * 0.15, 1.4 * 0.35])
    peak = moved.amax((2, 3))  # each in the hue of the image before
    assert torch.allclose(peak / peak.amax(1, keepdim=True), train.colors[index].roll(1, 0), atol=1e-5)

    mine, x, left, bce = KnobVAE(3, 10, UNITS), train.colored(index), 1 / 4, F.binary_cross_entropy_with_logits
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(seen["params"]).detach(), mine.parameters())
    torch.set_rng_state(rng)
    (mu, logvar, log_q), (mu_copy, _, log_q_copy) = mine.encode(x), mine.encode(copy)
    code = mine.sample(mu, logvar, log_q, 5 * math.exp(-0.002 * 3))
    turned = torch.cat([code[:, :2].roll(1, 0), code[:, 2:5] + 1.4 * share, code[:, 5:]], 1)[:50].detach()
    loss = bce(mine.decoder(code), x, reduction="sum")
    loss = loss + vae_joint.gaussian_kl(mu, logvar).sum() + vae_joint.categorical_kl(log_q).sum()
    loss = loss + 2 * vae_knobs.clustering_loss(log_q[:, 0], log_q_copy[:, 0], 5.0, 4.0)
    loss = loss + 3 * left * ((mu_copy - mu)[:, 2:5] - 1.4 * share).square().sum()
    loss = loss + 5 * bce(mine.decoder(turned), moved[:50], reduction="sum")
    loss = loss + 7e4 * vae_knobs.heard_term(mine, code) + 11 * vae_knobs.centring_term(log_q[:, 0], mu[:, 2:5])
    gradients = torch.autograd.grad(loss, [*mine.parameters()])
    assert all((p.grad - g).norm() < 1e-3 * g.norm() for p, g in zip(seen["params"], gradients, strict=True))


def test_resumed_equals_uninterrupted(few_images, no_figures, tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", monkeypatch)
    checkpoint = vae_knobs.runs.Run.checkpoint

    def stop(self, history):
        checkpoint(self, history)
        if len(history) == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(vae_knobs.runs.Run, "checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", patch)
    cut = run(tmp_path / "cut", monkeypatch)
    assert cut == whole
    weights = [vae_knobs.load_model(tmp_path / name / "model.pt").state_dict() for name in ("whole", "cut")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
