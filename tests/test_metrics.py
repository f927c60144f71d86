import math
import re

import matplotlib.colors
import pytest
import torch
from torch import nn

import data
import metrics

# --------------------------------------------------------------------------------------------- hues


def test_the_hue_of_every_test_image_is_read_within_a_degree(test_set):
    assert metrics.hue_distance(metrics.hue_of(test_set.colored(slice(None))), test_set.hues).max() < 1


def test_hue_of_known_images():
    x = torch.zeros(4, 3, 28, 28)
    x[0, 0, 5:9] = 1  # red
    x[1, 2, 5:9] = 0.3  # dark blue
    x[2, :, 5:9] = 0.5  # grey: no hue; the fourth is black: none either
    hues = metrics.hue_of(x)
    assert hues[:2].tolist() == [0, 240] and hues[2:].isnan().all()
    _, hue = metrics._right(x, torch.zeros(4), torch.tensor([350.0, 240, 0, 0]))
    assert hue.tolist() == [True, True, False, False]


def test_hue_distance():
    a, b = torch.tensor([350.0, 10, 0, 90]), torch.tensor([10.0, 350, 180, 90])
    assert metrics.hue_distance(a, b).tolist() == [20, 20, 180, 0]


# ----------------------------------------------------------------------------- information and ELBO


def test_mutual_information_against_closed_forms():
    a = torch.arange(1200)
    assert metrics.mutual_information(a % 10, a % 10) == pytest.approx(math.log(10))
    assert metrics.mutual_information(a % 10, a // 10 % 12) == pytest.approx(0, abs=1e-9)
    # A binary symmetric channel that errs once in four: log 2 - H(1/4).
    sent = a % 2
    received = torch.where(a // 2 % 4 == 0, 1 - sent, sent)
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert metrics.mutual_information(sent, received) == pytest.approx(math.log(2) - entropy)


def test_discretize():
    values = torch.tensor([[3.0], [-1.0], [10.0], [0.5]])
    assert metrics.discretize(values).tolist() == [10, 0, 15, 5]  # quarters of 20 bins
    assert metrics.discretize(torch.eye(3)[[2, 0, 1]]).tolist() == [2, 0, 1]
    wheel = torch.tensor([[0.0, 2.0], [-3.0, -1.0], [1.0, -1.0], [0.1, 0.0]])  # 90, -162, -45, 0°
    assert metrics.discretize(wheel).tolist() == [15, 0, 5, 10]


def test_pixel_entropy_is_the_loss_of_a_perfect_reconstruction(test_set):
    x = data.colorize(test_set.images[:500], test_set.colors[:500]).double()
    perfect = nn.functional.binary_cross_entropy(x, x, reduction="sum").item() / 500
    assert metrics.pixel_entropy(test_set[:500]) == pytest.approx(perfect, rel=1e-5)


def test_mean_terms_do_not_depend_on_batches(test_set):
    few = test_set[:700]
    terms = metrics.mean_terms(lambda x: {"ink": x.sum(), "images": torch.tensor(float(len(x)))}, few)
    assert terms["images"] == 1
    assert terms["ink"] == pytest.approx(few.colored(slice(None)).sum().item() / 700, rel=1e-5)


class Draws(nn.Module):
    """Codes are the images, decoded by any function."""

    def __init__(self, decode):
        super().__init__()
        self.code, self.decode = nn.Identity(), decode


def test_explained_variance(test_set):
    mean = test_set.colored(slice(1000)).mean(0)
    for decode, share in (
        (lambda code: code, 1),
        (lambda code: mean.expand_as(code), 0),
        (lambda code: (code + mean) / 2, 0.75),
    ):
        assert metrics.explained_variance(Draws(decode), test_set) == pytest.approx(share, abs=1e-4)
    assert metrics.explained_variance(Draws(torch.zeros_like), test_set) < 0


def test_a_row_of_the_history_has_every_term(test_set, capsys):
    """Of the batches as they were trained on, of the test set as it is now."""
    few, batches = test_set[:100], [{"a": torch.tensor(60.0), "penalty": torch.tensor(30.0)}] * 2
    row = metrics.epoch_row(batches, lambda x: {"a": x.sum()}, Draws(lambda code: code), few, few)
    ink = few.colored(slice(None)).sum().item() / 100
    assert row == pytest.approx({"train_a": 1.2, "train_penalty": 0.6, "test_a": ink, "explained_variance": 1})
    for more in ({}, {"tau": 0.75}):  # not every model has a temperature
        metrics.print_epoch([{"epoch": 1, "seconds": 5.0, **more, **row}], 10)
        assert ("tau 0.75" in capsys.readouterr().out) == bool(more)
    metrics.print_epoch([{"seconds": 5.0, **row}, {"seconds": 65.0, **row}], 10)
    out = capsys.readouterr().out
    assert re.search(r"epoch +2/10 .* a +1.20 +penalty +0.60 .* 60.0 s +8.0 min left", out) and "Warning" not in out


def test_the_first_epoch_of_which_the_code_carries_nothing_gives_a_warning(capsys):
    warned, history = [], []
    for epoch, share in enumerate((0.5, 0.01, -0.1, 0.5, 0.0, 0.5), 1):
        history.append({"epoch": epoch, "seconds": epoch, "explained_variance": share})
        metrics.print_epoch(history, 6)
        warned += [epoch] * ("Warning: the code carries almost nothing" in capsys.readouterr().out)
    assert warned == [2, 5]


# ------------------------------------------------------------------------------------------ control


class Perfect(nn.Module):
    """Codes of three latents: the hue as a number (degrees / 360), a useless variable, the digit.

    Decodes to a real image of that digit in that hue.
    """

    latents = {"z1": slice(0, 1), "v1": slice(1, 3), "v2": slice(3, 13)}  # noqa: RUF012

    def __init__(self, test: data.ColoredSet):
        super().__init__()
        x = data.colorize(test.images[:500], torch.ones(500, 3))
        kept = metrics.digit_of(x) == test.digits[:500]  # the judge's misses do not count
        places = metrics.first_of_each_digit(torch.where(kept, test.digits[:500], -1), 1)[:, 0]
        self.prototypes = x[places]

    def codes(self, images: data.ColoredSet) -> torch.Tensor:
        useless = nn.functional.one_hot(torch.arange(len(images.digits)) % 2, 2)
        return torch.cat([images.hues[:, None] / 360, useless, nn.functional.one_hot(images.digits, 10)], 1)

    def decode(self, code):
        hsv = torch.stack([code[:, 0], torch.ones(len(code)), torch.ones(len(code))], 1)
        rgb = torch.from_numpy(matplotlib.colors.hsv_to_rgb(hsv.numpy()))
        return self.prototypes[code[:, 3:].argmax(1)] * rgb[:, :, None, None]


@pytest.fixture(scope="module")
def perfect(test_set):
    return Perfect(test_set)


def test_perfect_codes_score_one_and_shuffled_ones_chance(test_set, perfect):
    few = test_set[:3000]
    codes = perfect.codes(few)
    scores = metrics.reconstruction(perfect, codes, few)
    assert scores == {"reconstruction_digit": 1, "reconstruction_hue": 1, "reconstruction_both": 1}
    shuffled = codes[torch.randperm(len(codes), generator=torch.Generator().manual_seed(0))]
    scores = metrics.reconstruction(perfect, shuffled, few)
    assert scores["reconstruction_digit"] == pytest.approx(0.1, abs=0.02)
    assert scores["reconstruction_hue"] == pytest.approx(30 / 360, abs=0.02)
    assert scores["reconstruction_both"] == pytest.approx(0.1 * 30 / 360, abs=0.008)


def test_control_on_demand(test_set, perfect):
    wanted, codes = metrics.demand_requests(), perfect.codes(test_set)
    assert wanted.shape == (240, 2) and len(wanted.unique(dim=0)) == 240 and wanted[25].tolist() == [1, 15]
    scores, pictures, right = metrics.control_on_demand(perfect, codes, test_set)
    assert scores == {"demand_digit": 1, "demand_hue": 1, "demand_both": 1}
    assert pictures.shape == (10, 24, 3, 28, 28) and right.all()
    assert metrics.digit_of(pictures[7]).eq(7).all()
    shuffled = codes[torch.randperm(len(codes), generator=torch.Generator().manual_seed(0))]
    scores, _, _ = metrics.control_on_demand(perfect, shuffled, test_set)
    assert scores["demand_both"] < 0.1


def test_found_codes_are_different_training_codes_of_the_request(test_set, perfect):
    few = test_set[:2000]
    codes = perfect.codes(few)
    found = metrics.find_codes(codes, few, torch.tensor([[3.0, 120.0], [8.0, 0.0]]))
    assert found.shape == (2, 5, 13)
    for (digit, hue), five in zip(((3, 120), (8, 0)), found, strict=True):
        assert len(five.unique(dim=0)) == 5
        assert (five[:, None] == codes).all(-1).any(1).all()
        assert five[:, 3:].argmax(1).eq(digit).all()
        assert metrics.hue_distance(five[:, 0] * 360, torch.tensor(float(hue))).max() < 15
    # With fewer different codes than wanted, they come over again.
    two = metrics.find_codes(torch.eye(2).repeat(1000, 1), few, torch.tensor([[3.0, 120.0]]))
    assert two.shape == (1, 5, 2)


def test_color_latents_and_swap(test_set, perfect):
    codes = perfect.codes(test_set)
    information = metrics.latent_information(perfect.latents, codes, test_set)
    assert information["z1"]["mi_hue"] > 2 and information["z1"]["mi_digit"] < 0.02
    assert information["v2"]["mi_digit"] > 2.2 and information["v2"]["mi_hue"] < 0.02
    names = metrics.color_latents(perfect.latents, codes, test_set)
    assert "z1" in names and "v2" not in names
    few, codes = test_set[:3000], codes[:3000]
    scores = metrics.control_by_swap(perfect, codes, ["z1"], few)
    assert scores == {"swap_digit": 1, "swap_hue": 1, "swap_both": 1}
    # With no colour latents the first image comes back, the other's hue only by chance.
    scores = metrics.control_by_swap(perfect, codes, [], few)
    assert scores["swap_digit"] == 1 and scores["swap_hue"] == pytest.approx(30 / 360, abs=0.02)


def test_swap_examples(test_set, perfect):
    first, column, swaps, right = metrics.swap_examples(perfect, perfect.codes(test_set), ["z1"], test_set)
    assert first.shape == (10, 3, 28, 28) and column.shape == (8, 3, 28, 28) and swaps.shape == (8, 10, 3, 28, 28)
    assert right.all()
    assert metrics.digit_of(swaps[5]).tolist() == list(range(10))
    hues = metrics.hue_of(swaps.flatten(0, 1)).view(8, 10)
    assert metrics.hue_distance(hues, metrics.hue_of(column)[:, None]).max() < 1


def test_color_wheel_scores(test_set):
    ink, angle = test_set.images.float().mean((1, 2)), torch.deg2rad(test_set.hues)
    codes = torch.stack([ink * angle.cos(), ink * angle.sin()], 1)
    plane = {"z1": slice(0, 1), "z2": slice(1, 2)}
    found = metrics.color_wheel_scores(plane, codes, test_set)
    assert found["radius_ink_correlation"] == pytest.approx(1, abs=1e-4)
    assert found["angle_mi_hue"] > 2.2 and found["angle_mi_digit"] < 0.02
    noise = torch.randn(10_000, 2, generator=torch.Generator().manual_seed(0))
    found = metrics.color_wheel_scores(plane, noise, test_set)
    assert abs(found["radius_ink_correlation"]) < 0.05 and found["angle_mi_hue"] < 0.03
    assert metrics.color_wheel_scores({"z1": slice(0, 1)}, noise, test_set) == {}


def test_digit_knob(test_set, perfect, capsys):
    """The variable is the digit, its categories turned by three; or it knows nothing."""
    few = test_set[:1000]
    codes = perfect.codes(few)
    codes = torch.cat([codes[:, :1], codes[:, 3:].roll(3, 1), codes[:, 1:3]], 1)

    class Turned:
        latents = {"hue": slice(0, 1), "digit": slice(1, 11)}  # noqa: RUF012

        def code(self, x):
            return torch.eye(13)[1].expand(len(x), 13)  # category 0, which is the digit 7

        def decode(self, code):
            return perfect.decode(torch.cat([code[:, :1], code[:, 11:], code[:, 1:11].roll(-3, 1)], 1))

    evaluation = metrics.Evaluation({}, {}, codes, codes, *[()] * 3)
    found = metrics.digit_knob(Turned(), evaluation, few, few)
    assert found["category_digits"] == [7, 8, 9, 0, 1, 2, 3, 4, 5, 6] and found["digit_accuracy"] == 1
    assert found["knob_digit"] == found["knob_hue"] == found["knob_both"] == 1
    assert sum(map(sum, found["category_counts"])) == 1000
    assert found["drawings_digit"] == pytest.approx((data.drawings()[1] == 7).double().mean().item())
    codes[:, 1:11] = torch.eye(10)[0]
    found = metrics.digit_knob(Turned(), evaluation, few, few)
    assert found["digit_accuracy"] < 0.2 and found["knob_digit"] < 0.2
    assert "no category is named after" in capsys.readouterr().out


def test_hue_codes(test_set):
    codes = torch.stack([test_set.hues, 2 * test_set.hues], 1)
    found = metrics.hue_codes(codes, test_set, torch.tensor([60.0, 200.0]))
    assert torch.allclose(found, torch.tensor([[60.0, 120], [200, 400]]), atol=3)


def test_a_dead_latent_is_named(test_set, perfect, capsys):
    few = test_set[:1000]
    perfect.kl = lambda x: torch.tensor([2.0, 0.001, 1.0]).expand(len(x), 3)
    usage = metrics.latent_usage(perfect, perfect.codes(few), few)
    assert usage["z1"]["kl"] == 2 and "categories_used" not in usage["z1"]
    assert usage["v1"]["categories_used"] == 2 and usage["v2"]["categories_used"] == 10
    out = capsys.readouterr().out
    assert "latent v1 is dead" in out and out.count("Warning") == 1
    codes = perfect.codes(few)
    codes[:, perfect.latents["v2"]] = torch.eye(10)[3]
    assert metrics.latent_usage(perfect, codes, few)["v2"]["categories_used"] == 1
    assert "latent v2 is stuck" in capsys.readouterr().out


def test_first_of_each_digit(test_set):
    index = metrics.first_of_each_digit(test_set.digits, 3)
    assert index.shape == (10, 3) and torch.equal(test_set.digits[index], torch.arange(10)[:, None].expand(10, 3))
    assert index[7, 0] == 0  # the first test image is a 7
    assert (index.diff(dim=1) > 0).all()


def test_plane_codes():
    plane = {"z1": slice(0, 1), "z2": slice(1, 2)}
    grid = metrics.plane_codes(torch.tensor([9.0, 9, 7]), plane, torch.tensor([0.0, 1]))
    assert grid.tolist() == [[[0, 1, 7], [1, 1, 7]], [[0, 0, 7], [1, 0, 7]]]


# -------------------------------------------------------------------------------------- translation


def test_scores_of_known_translations(test_set):
    grey, digits = test_set.images[:1000], test_set.digits[:1000]
    a, b = data.palette("A", data.DOMAIN_A), data.palette("B", data.DOMAIN_B)
    truth = data.colorize(grey, b[digits])
    assert torch.allclose(metrics.color_of(truth, grey), b[digits], atol=1e-5)
    oracle, right = metrics.translation_scores("oracle", truth, grey, digits, b)
    assert oracle["oracle_color"] == oracle["oracle_exact"] == 1 and oracle["oracle_digit"] > 0.98
    assert oracle["oracle_both"] == right.double().mean()
    assert oracle["oracle_l1"] == 0 and oracle["oracle_psnr"] is None
    nothing, _ = metrics.translation_scores("x", data.colorize(grey, a[digits]), grey, digits, b)
    assert nothing["x_color"] == nothing["x_exact"] == 0 and nothing["x_digit"] == oracle["oracle_digit"]
    darker, _ = metrics.translation_scores("x", truth * 0.88, grey, digits, b)
    far = 0.12 * b.norm(dim=1) > metrics.COLOR_TOLERANCE  # not teal and purple
    assert darker["x_exact_by_digit"] == (~far).double().tolist() and darker["x_both"] <= darker["x_exact"] < 1
    assert darker["x_color"] == 1 and len(darker["x_digit_by_digit"]) == len(darker["x_color_by_digit"]) == 10
    assert darker["x_psnr"] == pytest.approx(-10 * torch.log10((0.12 * truth).square().mean()).item(), rel=1e-4)
    assert torch.equal(metrics.color_map(truth, grey, digits, b), torch.eye(10))
    shifted = data.colorize(grey, b[(digits + 3) % 10])
    assert torch.equal(metrics.color_map(shifted, grey, digits, b), torch.eye(10).roll(3, 1))


def test_both_directions_are_scored_beside_identity_and_oracle(test_set, capsys):
    """A → B does nothing here, and B → A is perfect."""
    few = test_set[:300]
    a, b = data.palette("A", data.DOMAIN_A), data.palette("B", data.DOMAIN_B)
    truth = data.colorize(few.images, a[few.digits])
    shift = torch.randint(1, 10, few.digits.shape, generator=torch.Generator().manual_seed(0))
    in_others = data.colorize(few.images, a[(few.digits + shift) % 10])
    firsts = truth[metrics.first_of_each_digit(few.digits, 1)[:, 0]]
    turned = iter([*truth.split(50), firsts, *truth.split(50), *in_others.split(50)])
    directions = {
        "a_to_b": metrics.Direction(lambda x: x, a, b),
        "b_to_a": metrics.Direction(lambda x: next(turned), b, a),
    }
    row = metrics.translation_row(directions, few.images, few.digits)
    assert row["a_to_b_exact"] == 0 and row["b_to_a_exact"] == 1 and row["pictures"].shape == (2, 10, 3, 28, 28)
    metrics.print_translation({"step": 5, "seconds": 60.0, **row}, 20)
    assert re.match(r" 5/20 updates .*exact +0.0% .*exact 100.0% .* 1.0 min", capsys.readouterr().out)
    results, examples, maps = metrics.evaluate_translation(directions, few.images, few.digits)
    assert results["a_to_b_exact"] == results["identity_b_to_a_exact"] == 0 and results["b_to_a_psnr"] is None
    assert results["b_to_a_exact"] == results["oracle_a_to_b_exact"] == results["b_to_a_by_color_alone"] == 1
    assert results["a_to_b_by_color_alone"] == 0
    assert torch.equal(examples["b_to_a"][1], examples["b_to_a"][2]) and torch.equal(maps["b_to_a"], torch.eye(10))
