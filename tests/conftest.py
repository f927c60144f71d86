import functools
import importlib
import os
import shutil
import types

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

import data
import plots
import runs

NAMES = ("vae_continuous", "vae_discrete", "vae_joint", "vae_knobs", "cyclegan_colors")
SCRIPTS = [importlib.import_module(name) for name in NAMES]

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):  # tests share the cores
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())  # of subprocesses

_load = data.load


@functools.cache
def _all_images(train, dataset, folder):
    return _load(train)


@pytest.fixture
def few_images(monkeypatch):
    """The first 400 training and 300 test images in place of all: a whole run in seconds.

    A test may ask for other numbers: few_images(n_train, n_test).
    """

    def take(n_train, n_test):
        def load_few(train):
            images, digits = _all_images(train, data.DATASET, data.DATA_DIR)
            n = n_train if train else n_test
            return images[:n], digits[:n]

        monkeypatch.setattr(data, "load", load_few)

    take(400, 300)
    movie = plots.movie

    def short_movie(path, frames, titles, *args, **options):
        assert len(frames) == len(titles)
        movie(path, frames, titles[:2], *args, **options)

    monkeypatch.setattr(plots, "DPI", 40)  # figures are drawn all the same, only smaller
    monkeypatch.setattr(plots, "movie", short_movie)  # two frames of each
    for script in SCRIPTS:
        monkeypatch.setattr(script, "DEVICE", "cpu")  # the same numbers wherever the tests run
    return take


@pytest.fixture
def no_figures(monkeypatch):
    """Runs draw nothing, as most of a short run's time goes into figures."""
    for script in SCRIPTS:
        monkeypatch.setattr(script, "figures", lambda *args: None)


@pytest.fixture
def before_steps():
    """before_steps(f): in this test f(optimizer, ...) is called before each step."""
    hooks = []
    yield lambda hook: hooks.append(register_optimizer_step_pre_hook(hook))
    for hook in hooks:
        hook.remove()


@pytest.fixture
def edited(tmp_path):
    """edited(name, (old, new), ...): a copy of a script, so edited, as a module that draws nothing.

    The copy lies in a folder of its own with a copy of data.py, which `edited("data", ...)` edits.
    """
    folder = tmp_path / "code"
    folder.mkdir()
    shutil.copy(runs.ROOT / "data.py", folder)

    def edit(name, *edits):
        source = (runs.ROOT / f"{name}.py").read_text(encoding="utf-8")
        for old, new in edits:
            assert old in source, old
            source = source.replace(old, new)
        module = types.ModuleType(name)
        module.__file__ = str(folder / f"{name}.py")
        (folder / f"{name}.py").write_text(source, encoding="utf-8")
        exec(compile(source, module.__file__, "exec"), vars(module))
        module.OUTPUT_DIR, module.DEVICE, module.figures = tmp_path / "out", "cpu", lambda *args: None
        return module

    return edit


@pytest.fixture(scope="session")
def test_set():
    return data.colored_set(train=False, device=torch.device("cpu"))
