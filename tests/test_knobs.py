import math

import pytest
import torch
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
    assert results["knob_slant_gain"] == pytest.approx(1, abs=0.1)


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


def test_equivariance_of_codes_that_moved_as_known(model, images):
    mu, moved = torch.randn(60, 5), torch.randn(60, 3)
    copy = torch.cat([torch.randn(60, 2), mu[:, 2:] + moved], 1)  # the hue is free
    terms = vae_knobs.equivariance_terms(model, model.code(images), mu, copy, images[:30], moved)
    assert terms["moved_code"] < 1e-9
    terms["moved_picture"].backward()
    assert model.encoder[1].weight.grad is None and model.decoder[0].weight.grad.abs().sum() > 0


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
    assert len(results["knobs_kept"]) == 14 and results["color_latents"] is not None
    figures = {"finding.png", "units.png", "confusion.png", "knobs.gif", "loss.png"}
    assert figures <= {path.name for path in tmp_path.iterdir()}
    model = vae_knobs.load_model(tmp_path / "model.pt")
    assert model.units.tolist() == pytest.approx(UNITS, rel=1e-3) and (tmp_path / "model.pt").stat().st_size < 6e6
    x = data.colored_set(train=False, device=torch.device("cpu")).colored(slice(300))
    category = model.code(x)[:, model.latents["digit"]].argmax(1)
    assert torch.bincount(category, minlength=10).tolist() == [sum(row) for row in results["category_counts"]]


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
