import pytest
import torch

import data
import plots
import vae_continuous
import vae_control
import vae_discrete
import vae_joint


@pytest.fixture
def few_images(monkeypatch):
    """The first 400 training and 300 test images in place of all: a whole run in seconds."""
    load = data.load

    def load_few(train):
        images, digits = load(train)
        n = 400 if train else 300
        return images[:n], digits[:n]

    monkeypatch.setattr(data, "load", load_few)
    monkeypatch.setattr(plots, "DPI", 40)  # figures are drawn all the same, only smaller
    for script in (vae_continuous, vae_discrete, vae_joint, vae_control):
        monkeypatch.setattr(script, "DEVICE", "cpu")  # the same numbers wherever the tests run


@pytest.fixture(autouse=True)
def full_precision():
    """A run that was cut short leaves torch as it was in training."""
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.fixture(scope="session")
def test_set():
    return data.colored_set(train=False, device=torch.device("cpu"))
