"""Killed again and again, a run ends like an undisturbed one. Long: `pytest -m slow -n 0`."""

import json
import os
import subprocess
import sys

import pytest
import torch

import runs

CODE = """
import os, random, signal, sys, time
from pathlib import Path
import torch
import data, metrics
import {script} as script

torch.set_num_threads(1)  # fork() and OpenMP's threads do not go together
few = {{train: tuple(part[: 480 if train else 100] for part in data.load(train)) for train in (True, False)}}
data.load, metrics.N_HUES = lambda train: few[train], 4  # a short run
script.EPOCHS, script.DEVICE, script.figures = {epochs}, "cpu", lambda *args: None


def start(name):
    if child := os.fork():
        return child
    script.OUTPUT_DIR = Path(sys.argv[1]) / name
    script.main()
    sys.exit()


def status(child):
    return os.waitpid(child, 0)[1]


begin = time.perf_counter()
assert status(start("whole")) == 0
seconds, moments, killed = time.perf_counter() - begin, random.Random(0), 0
for kill in range({kills}):
    child = start("cut")
    for _ in range(6000 if kill == 0 else 0):  # once for sure there is something to go on with
        if (Path(sys.argv[1]) / "cut" / "checkpoint.pt").exists():
            break
        time.sleep(0.01)
    time.sleep(moments.uniform(0.1, 0.4) * seconds / {kills} ** 0.5)
    os.kill(child, signal.SIGKILL)
    killed += status(child) == signal.SIGKILL
print("killed", killed, "times")
assert status(start("cut")) == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
@pytest.mark.parametrize(
    ("script", "epochs", "kills"),
    [("vae_joint", 10, 2)]
    + [pytest.param(script, 60, 20, marks=pytest.mark.slow) for script in ("vae_continuous", "vae_discrete")]
    + [pytest.param(script, 60, 20, marks=pytest.mark.slow) for script in ("vae_joint", "cyclegan_colors")],
)
def test_killed_runs_end_like_undisturbed_ones(script, epochs, kills, tmp_path):
    code = CODE.format(script=script, epochs=epochs, kills=kills)
    ended = subprocess.run([sys.executable, "-u", "-c", code, tmp_path], cwd=runs.ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    print(*(line for line in ended.stdout.splitlines() if line.startswith(("Going on", "killed"))), sep="\n")
    assert "Going on after epoch" in ended.stdout and "killed 0 times" not in ended.stdout
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    name = "generators.pt" if script == "cyclegan_colors" else "model.pt"
    first, second = (runs.load_torch(folder / name) for folder in (whole, cut))
    for part in ("a_to_b", "b_to_a") if script == "cyclegan_colors" else ("weights",):
        assert all(torch.equal(first[part][name], second[part][name]) for name in first[part] | second[part])
    results = [json.loads((folder / "metrics.json").read_text())["results"] for folder in (whole, cut)]
    assert results[0] == results[1] and {path.name for path in whole.iterdir()} == {path.name for path in cut.iterdir()}
