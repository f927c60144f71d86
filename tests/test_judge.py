import json

import pytest
import torch

import data
import judge
import metrics
import runs

CPU = torch.device("cpu")


def test_it_reads_test_digits_in_grey_and_in_color(test_set):
    few = test_set[:3000]
    assert (judge.OUTPUT_DIR / "MNIST" / "judge.pt").stat().st_size < 1_000_000
    kept = json.loads((judge.OUTPUT_DIR / "MNIST" / "metrics.json").read_text())["results"]
    assert kept["judge_grey"] >= 0.993 and kept["judge_colored"] >= 0.992
    for name, colors in (("grey", torch.ones(3000, 3)), ("colored", few.colors)):
        read = metrics.digit_of(data.colorize(few.images, colors))
        assert (read == few.digits).float().mean().item() == pytest.approx(kept[f"judge_{name}"], abs=0.005)


def test_it_does_not_see_color_or_brightness(test_set):
    grey = data.colorize(test_set.images[:200], torch.ones(200, 3))
    tinted = grey * torch.tensor([0.1, 0.5, 0.9]).view(3, 1, 1)
    read = judge.load(CPU)
    with torch.inference_mode():
        assert torch.allclose(read(grey), read(tinted), atol=1e-3)


def test_it_is_trained_on_few_images(few_images, tmp_path, monkeypatch):
    monkeypatch.setattr(judge, "OUTPUT_DIR", tmp_path)
    monkeypatch.setattr(judge, "EPOCHS", 1)
    model = judge.load(CPU)  # trains, since there is none
    assert model(torch.zeros(2, 3, 28, 28)).shape == (2, 10) and not model.training
    assert 0 < json.loads((tmp_path / "MNIST" / "metrics.json").read_text())["results"]["judge_grey"] < 1
    before = judge.fingerprint(model)
    assert judge.fingerprint(judge.load(CPU)) == before
    model[0].weight.data[0, 0, 0, 0] += 1e-3
    assert judge.fingerprint(model) != before


@pytest.mark.parametrize("weights", [{"weight": torch.zeros(2, 2)}, [1, 2], None])
def test_other_weights_are_refused(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(judge, "OUTPUT_DIR", tmp_path)
    path = tmp_path / "MNIST" / "judge.pt"
    runs.save_torch(path, weights)
    if weights is None:
        path.write_bytes(b"half of it")
    with pytest.raises(SystemExit, match=r"judge\.pt (is missing, damaged|does not hold the weights of a judge)"):
        judge.load(CPU)
