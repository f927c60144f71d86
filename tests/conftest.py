import os

import pytest
import torch

import cyclegan_colors
import data
import plots
import vae_continuous
import vae_control
import vae_discrete
import vae_joint

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):  # the tests run in parallel: they share the cores
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())  # of the processes that tests start


@pytest.fixture
def few_images(monkeypatch):
    """The first 400 training and 300 test images in place of all: a whole run in seconds."""
    load = data.load

    def load_few(train):
        images, digits = load(train)
        n = 400 if train else 300
        return images[:n], digits[:n]

    monkeypatch.setattr(data, "load", load_few)
    movie = plots.movie

    def short_movie(path, frames, titles, *args, **options):
        assert len(frames) == len(titles)
        movie(path, frames, titles[:2], *args, **options)

    monkeypatch.setattr(plots, "DPI", 40)  # figures are drawn all the same, only smaller
    monkeypatch.setattr(plots, "movie", short_movie)  # two frames of each
    for script in (vae_continuous, vae_discrete, vae_joint, vae_control):
        monkeypatch.setattr(script, "DEVICE", "cpu")  # the same numbers wherever the tests run


@pytest.fixture
def no_figures(monkeypatch):
    """Runs draw nothing, as most of a short run's time goes into figures."""
    for script in (vae_continuous, vae_discrete, vae_joint, vae_control, cyclegan_colors):
        monkeypatch.setattr(script, "figures", lambda *args: None)


@pytest.fixture(autouse=True)
def full_precision():
    """A run that was cut short leaves torch as it was in training."""
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.fixture(scope="session")
def test_set():
    return data.colored_set(train=False, device=torch.device("cpu"))
