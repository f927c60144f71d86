import json
import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, kl_divergence

import data
import metrics
import runs
import vae_control
import vae_joint
from vae_control import ControlVAE


@pytest.fixture
def model():
    torch.manual_seed(0)
    return ControlVAE(2, 4, 10)


@pytest.fixture
def images(test_set):
    return test_set.colored(slice(60))


def test_the_network_is_the_joint_models_in_other_sizes(model):
    joint = vae_joint.JointVAE(2, 4, 10)
    assert {name: w.shape for name, w in model.state_dict().items()} == {
        name: w.shape for name, w in joint.state_dict().items()
    }
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_696_540
    joint.load_state_dict(model.state_dict())
    x = torch.rand(5, 3, 28, 28)
    assert torch.equal(model.code(x), joint.code(x)) and torch.equal(model.kl(x), joint.kl(x))
    assert torch.equal(model.decode(model.code(x)), joint.decode(joint.code(x))) and model.latents == joint.latents
    with torch.random.fork_rng():
        torch.manual_seed(1)
        terms = vae_control.elbo_terms(model, x, 0.7)
        torch.manual_seed(1)
        assert {name: t.item() for name, t in terms.items()} == pytest.approx(
            {name: t.item() for name, t in vae_joint.elbo_terms(joint, x, 0.7).items()}
        )


def test_digit_terms_against_torch_distributions():
    generator = torch.Generator().manual_seed(0)
    logits, other = 3 * torch.randn(2, 50, 10, generator=generator, dtype=torch.float64)
    terms = vae_control.digit_terms(logits.log_softmax(-1), other.log_softmax(-1))
    q, copy = Categorical(logits=logits), Categorical(logits=other)
    assert torch.allclose(terms["agreement"], kl_divergence(q, copy).sum())
    assert torch.allclose(terms["entropy"], q.entropy().sum())
    assert torch.allclose(terms["mean_entropy"], 50 * Categorical(probs=q.probs.mean(0)).entropy())
    # Images that agree, are certain and fill all categories have the lowest loss.
    certain = (1e4 * torch.eye(10).repeat(5, 1)).log_softmax(-1)
    uniform = torch.zeros(50, 10).log_softmax(-1)
    low, high = (vae_control.digit_loss(vae_control.digit_terms(x, x)).item() / 50 for x in (certain, uniform))
    assert low == pytest.approx(-vae_control.BALANCE_WEIGHT * math.log(10))
    assert high == pytest.approx((1 - vae_control.BALANCE_WEIGHT) * math.log(10), rel=1e-5)


def test_the_gradient_is_finite_where_probabilities_underflow():
    logits = torch.tensor([[0.0, 200.0, -200.0]] * 4, requires_grad=True)  # the third category stays empty
    log_q = logits.log_softmax(-1)
    assert (log_q.exp() == 0).any()
    loss = vae_control.digit_loss(vae_control.digit_terms(log_q, log_q.flip(0)))
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


def test_the_side_of_the_original_is_held_fixed():
    log_q, copy = (torch.randn(5, 10).log_softmax(-1).requires_grad_() for _ in range(2))
    vae_control.digit_terms(log_q, copy)["agreement"].backward()
    assert log_q.grad is None and copy.grad.abs().sum() > 0


def test_overclustering_trains_the_encoder_and_its_own_head(images):
    model, head = ControlVAE(2, 4, 10), nn.Linear(256, 30)
    h = model.encoder(torch.cat([images, images.flip(3)]))
    loss = vae_control.overclustering_loss(head, h)
    q, copy = (Categorical(logits=head(part)) for part in h.chunk(2))
    mean = Categorical(probs=q.probs.mean(0)).entropy()
    expected = vae_control.AGREEMENT_WEIGHT * kl_divergence(q, copy).sum() + q.entropy().sum()
    assert torch.allclose(loss, expected - vae_control.BALANCE_WEIGHT * len(images) * mean, rtol=1e-4)
    loss.backward()
    assert head.weight.grad.any() and model.encoder[1].weight.grad.any() and model.categorical_head.weight.grad is None
    assert vae_control.overclustering_loss(nn.Linear(256, 1), h) == 0  # one category: no term


def test_the_knob_term_trains_only_the_decoder(model, images):
    code = model.code(images).detach().requires_grad_()
    vae_control.knob_term(model, code).backward()
    assert code.grad is None and all(parameter.grad is None for parameter in model.encoder.parameters())
    assert model.categorical_head.weight.grad is None and model.decoder[0].weight.grad.abs().sum() > 0
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_knob_term_is_low_when_pictures_show_the_category(model, images, monkeypatch):
    """A decoder that writes the category into a pixel row, and an encoder that reads it there."""
    monkeypatch.setattr(model, "decode", lambda code: nn.functional.pad(code[:, 2:12, None, None], (0, 27, 0, 27)))
    monkeypatch.setattr(model, "encode", lambda x: (0, 0, (100 * x[:, :10, 0, 0]).log_softmax(-1)[:, None]))
    assert vae_control.knob_term(model, model.code.__func__(ControlVAE(2, 4, 10), images)).item() < 1e-3
    monkeypatch.setattr(model, "encode", lambda x: (0, 0, (0 * x[:, :10, 0, 0]).log_softmax(-1)[:, None]))
    assert vae_control.knob_term(model, torch.zeros(60, 42)).item() == pytest.approx(60 * math.log(10), rel=1e-5)


def test_deformed_copies_keep_the_digit_and_take_another_hue(test_set):
    index = torch.arange(500)
    copies = vae_control.deformed_copies(test_set, index, vae_control.START_ELASTIC)
    assert (metrics.digit_of(copies) == test_set.digits[index]).float().mean() > 0.93
    assert metrics.hue_distance(metrics.hue_of(copies), test_set.hues[index].roll(1)).max() < 1
    assert (copies.amax(1) - test_set.colored(index).amax(1)).abs().mean() > 0.03


def test_the_start_that_the_consensus_chooses_goes_on(few_images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(vae_control, "BATCH_SIZE", 50)
    monkeypatch.setattr(vae_control, "VOTE_EPOCHS", 0)
    monkeypatch.setattr(vae_control, "consensus", lambda first, *_: (2, first[2].argmax(1)))
    with runs.start(tmp_path, vars(vae_control) | {"DEVICE": "cpu"}) as run:
        train = data.colored_set(train=True, device=run.device)
        torch.manual_seed(0)
        best = vae_control.first_weights(train, run)
        torch.manual_seed(0)
        models, _ = zip(*[(ControlVAE(2, 4, 10), nn.Linear(256, 30)) for _ in range(4)], strict=True)
    moved = [(best.encoder[1].weight - model.encoder[1].weight).abs().mean().item() for model in models]
    assert moved.index(min(moved)) == 2 and min(moved) > 0 and "start 3 goes on" in capsys.readouterr().out
    mean = train.colored(slice(None)).mean().item()
    pictures = best.decode(best.code(train.colored(slice(50))))
    assert pictures.mean().item() == pytest.approx(mean, rel=0.1) and mean < 0.1  # torch's own first pictures are grey


def test_the_consensus_corrects_what_single_starts_mix():
    """Four starts, each of which mixes two digits. Their larger variables have three categories for each digit."""
    digits = torch.randint(10, (3000,), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    first, larger = [], []
    for a, b in ((4, 9), (3, 5), (7, 9), (3, 8)):
        half = torch.rand(3000) < 0.5
        mixed = torch.where((digits == a) | (digits == b), torch.where(half, a, b), digits)
        first.append(nn.functional.one_hot(mixed, 10).float())
        groups = torch.where(torch.rand(3000) < 0.8, digits, mixed) + 10 * torch.randint(3, (3000,))
        larger.append(nn.functional.one_hot(groups, 30).float())
    nearest = torch.stack([torch.where(digits == digit)[0][:10] for digit in digits.tolist()])
    _, categories = vae_control.consensus(first, larger, nearest)
    alone = [vae_control.consensus([q], [p], nearest)[1] for q, p in zip(first, larger, strict=True)]
    assert all((x == digits).float().mean() < 0.99 for x in alone)
    right = [(q.argmax(1) == digits).float().mean() for q in first]
    assert max(right) < 0.93 and torch.equal(categories.unique(), torch.arange(10))
    counts = torch.zeros(10, 10).index_put_((categories, digits), torch.ones(3000), accumulate=True)
    assert counts.max(1).values.sum() / 3000 > 0.995 and sorted(counts.argmax(1).tolist()) == list(range(10))


def test_the_likeliest_consensus_is_taken():
    digits = torch.arange(1000) % 10
    right, merged = (nn.functional.one_hot(x, 10).float() for x in (digits, digits // 2))
    nearest = (torch.arange(1000)[:, None] + 10 * torch.arange(1, 6)) % 1000
    for order, best in (([merged, right], 1), ([right, merged], 0)):
        chosen, categories = vae_control.consensus(order, [right, right], nearest)
        assert chosen == best and torch.equal(categories, digits)


def run(folder, monkeypatch, **constants):
    monkeypatch.setattr(vae_control, "OUTPUT_DIR", folder)
    for name, value in ({"N_STARTS": 2, "START_EPOCHS": 1, "BATCH_SIZE": 64} | constants).items():
        monkeypatch.setattr(vae_control, name, value)
    return vae_control.main()


def test_overclustering_and_each_distortion_stand_where_they_belong(few_images, no_figures, tmp_path, monkeypatch):
    deformed, overclustered = vae_control.deformed_copies, vae_control.overclustering_loss
    calls = []
    monkeypatch.setattr(
        vae_control,
        "deformed_copies",
        lambda train, index, elastic: calls.append(elastic) or deformed(train, index, elastic),
    )
    monkeypatch.setattr(
        vae_control, "overclustering_loss", lambda head, h: calls.append("over") or overclustered(head, h)
    )
    run(tmp_path, monkeypatch, BATCH_SIZE=400, EPOCHS=1, VOTE_EPOCHS=2, N_VOTERS=300, ELASTIC=1.25, START_ELASTIC=0.75)
    assert calls == [0.75, "over", "over", 1.25, 1.25, 1.25]  # two starts, two epochs of the vote, one of all losses


def test_training_on_the_votes(few_images, tmp_path, monkeypatch, capsys):
    """The encoder of the chosen start learns the category of each image's vote, from these images alone."""
    target = {}

    def voted(categories, nearest):
        target["vote"] = torch.arange(len(categories)) % 3
        return target["vote"]

    monkeypatch.setattr(vae_control, "VOTE_EPOCHS", 60)
    monkeypatch.setattr(vae_control, "BATCH_SIZE", 50)
    monkeypatch.setattr(vae_control, "voted", voted)
    with runs.start(tmp_path, vars(vae_control) | {"DEVICE": "cpu"}) as run:
        train = data.colored_set(train=True, device=run.device)
        torch.manual_seed(0)
        models = [ControlVAE(2, 4, 10) for _ in range(2)]
        heads = [nn.Linear(256, 30) for _ in range(2)]
        optimizers = [torch.optim.Adam(model.parameters(), vae_control.LEARNING_RATE) for model in models]
        state = torch.get_rng_state()
        best = vae_control.best_start(list(zip(models, heads, optimizers, strict=True)), train, run)
    torch.set_rng_state(state)
    voters = torch.randperm(400)
    assert best in models and f"start {models.index(best) + 1} goes on" in capsys.readouterr().out
    assert (best.encode(train.colored(voters))[2][:, 0].argmax(1) == target["vote"]).float().mean() > 0.5
    assert best.decoder[0].weight.grad is None and models[1 - models.index(best)].encoder[1].weight.grad is None


def test_main_and_resume(few_images, tmp_path, monkeypatch, capsys):
    whole = run(tmp_path / "whole", monkeypatch, EPOCHS=3)
    written = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    assert written["results"] == whole and [row["epoch"] for row in written["history"]] == [1, 2, 3]
    assert sum(whole[f"test_{name}"] for name in ("reconstruction", "kl_z", "kl_v")) == pytest.approx(
        whole["test_loss"]
    )
    common = {"loss", "reconstructions", "latent_usage", "control_on_demand", "control_by_swap"}
    own = {"color_wheel", "confusion", "finding", "styles"}
    assert {path.stem for path in (tmp_path / "whole").glob("*.png")} == common | own
    assert (tmp_path / "whole" / "knobs.gif").stat().st_size > 0

    save = runs.Run.checkpoint

    def save_and_die(self, history):
        save(self, history)
        if len(history) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(runs.Run, "checkpoint", save_and_die)
    monkeypatch.setattr(vae_control, "figures", lambda *args: None)
    with pytest.raises(SystemExit, match="130"):
        run(tmp_path / "cut", monkeypatch)
    monkeypatch.setattr(runs.Run, "checkpoint", save)
    capsys.readouterr()
    assert run(tmp_path / "cut", monkeypatch) == whole
    assert "Going on after epoch 2" in capsys.readouterr().out
    weights = [vae_control.load_model(tmp_path / name / "model.pt").state_dict() for name in ("whole", "cut")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    "constants",
    [
        {"N_VARIABLES": 1, "LATENT_DIM": 1, "N_CATEGORIES": 3, "ELASTIC": 0.0, "N_VOTERS": 5, "VOTE_ROUNDS": 0},
        {"N_CATEGORIES": 11, "N_STARTS": 1, "N_OVERCLUSTERS": 2, "N_VOTERS": 10**6},
        {"N_CATEGORIES": 12, "N_STARTS": 1, "KNOB_WEIGHT": 0.0, "DIGIT_WEIGHT": 0, "PRECISION": "float32"},
    ],
)
def test_unusual_constants_work(constants, few_images, tmp_path, monkeypatch):
    results = run(tmp_path, monkeypatch, EPOCHS=1, **constants)
    assert results["digit_accuracy_one_to_one"] is None and len(results["category_digits"]) == constants["N_CATEGORIES"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("N_STARTS", 0),
        ("N_OVERCLUSTERS", 1),
        ("CONSENSUS_ROUNDS", 0),
        ("N_VOTERS", 1),
        ("N_NEIGHBORS", 0),
        ("VOTE_ROUNDS", -1),
        ("VOTE_EPOCHS", 0.5),
        ("KNOB_WEIGHT", -1),
        ("MAX_SCALE", 1),
        ("ELASTIC", None),
        ("START_ELASTIC", -0.1),
    ],
)
def test_an_impossible_constant_is_refused(name, value, few_images, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=f"{name} is .*: it must.*\\.$"):
        run(tmp_path, monkeypatch, **{name: value})
    assert not list(tmp_path.iterdir())


def test_the_rate_falls_to_zero():
    assert [vae_control.rate(step, 100) for step in (0, 50, 75, 100)] == [1, 1, 0.5, 0]


def test_a_loss_that_is_not_finite_in_the_votes_stops_the_run(few_images, tmp_path, monkeypatch):
    monkeypatch.setattr(vae_control.F, "nll_loss", lambda log_q, *_, **__: log_q.sum() * math.inf)
    with pytest.raises(SystemExit, match=r"in epoch 1 of the votes, step 0 .*: try a lower LEARNING_RATE"):
        run(tmp_path, monkeypatch, EPOCHS=1)


def test_a_start_whose_loss_is_not_finite_stops_the_run(few_images, tmp_path, monkeypatch):
    monkeypatch.setattr(vae_control, "digit_loss", lambda terms: terms["entropy"] * math.nan)
    with pytest.raises(SystemExit, match="The loss became nan in epoch 1 of the start, step 0"):
        run(tmp_path, monkeypatch, EPOCHS=1)


def test_votes_move_a_group_that_resembles_another_category(monkeypatch):
    """Two shapes, each in many positions: a quarter of one starts in the other's category, and all of it moves back."""
    bars = torch.zeros(2, 10, 10, 28, 28)  # 10 lengths, 10 positions: upright and level bars
    for i in range(10):
        for j in range(10):
            bars[0, i, j, 2 : 12 + i, 4 + 2 * j] = bars[1, i, j, 4 + 2 * j, 2 : 12 + i] = 255
    categories = torch.tensor([3, 7]).repeat_interleave(100)
    wrong = categories.clone()
    wrong[:25] = 7
    monkeypatch.setattr(vae_control, "N_NEIGHBORS", 10)
    monkeypatch.setattr(vae_control, "VOTE_ROUNDS", 10)
    nearest = vae_control.neighbours(bars.flatten(0, 2))
    assert nearest.shape == (200, 10) and not (nearest == torch.arange(200)[:, None]).any()
    assert torch.equal(vae_control.voted(wrong, nearest), categories)
    monkeypatch.setattr(vae_control, "VOTE_ROUNDS", 0)
    assert torch.equal(vae_control.voted(wrong, nearest), wrong)
    monkeypatch.setattr(vae_control, "VOTE_ROUNDS", 1)
    two = vae_control.neighbours(bars.flatten(0, 2)[:2])
    assert torch.equal(vae_control.voted(torch.tensor([1, 2]), two), torch.tensor([2, 1]))
