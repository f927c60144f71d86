"""Killed again and again, a run ends with the weights of an undisturbed one. Slow: `python -m pytest -m slow -n 0`."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import runs

ROOT = Path(runs.__file__).parent
KILLS = 20
RUN = """
import sys
from pathlib import Path
import {script} as script
import data
load = data.load
data.load = lambda train: tuple(part[: 2000 if train else 500] for part in load(train))
script.OUTPUT_DIR, script.EPOCHS, script.DEVICE = Path(sys.argv[1]), {epochs}, "cpu"
if hasattr(script, "IMAGES_PER_EPOCH"):
    script.IMAGES_PER_EPOCH = 200
script.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "epochs"),  # more of them than 20 starts of some seconds can finish
    [("vae_continuous", 300), ("vae_discrete", 300), ("vae_joint", 300), ("cyclegan_colors", 100)],
)
def test_killed_runs_end_like_undisturbed_ones(script, epochs, tmp_path):
    def start(name):
        command = [sys.executable, "-c", RUN.format(script=script, epochs=epochs), str(tmp_path / name)]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    whole = start("whole")
    whole.communicate()
    assert whole.returncode == 0
    moments, killed = random.Random(0), 0
    while True:
        process = start("cut")
        try:  # the imports take some seconds, an epoch and the figures less: most kills hit the training or its files
            out, err = process.communicate(timeout=moments.uniform(3, 6) if killed < KILLS else None)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            killed += 1
            for path in (tmp_path / "cut").glob("*.json"):
                json.loads(path.read_text())  # whole, or not there
            if (checkpoint := tmp_path / "cut" / "checkpoint.pt").exists():
                torch.load(checkpoint, weights_only=True)
    assert process.returncode == 0, err
    assert killed == KILLS, "the run ended before it was killed often enough: give it more epochs"
    print(f"{script}: killed {killed} times; {[line for line in out.splitlines() if line.startswith('Going on')]}")
    file = "generators.pt" if script == "cyclegan_colors" else "model.pt"
    first, second = (runs.load_torch(tmp_path / name / file) for name in ("whole", "cut"))
    if script == "cyclegan_colors":
        pairs = [(first[name], second[name]) for name in ("a_to_b", "b_to_a")]
    else:
        pairs = [(first["weights"], second["weights"])]
    assert all(torch.equal(a[name], b[name]) for a, b in pairs for name in a)
    results = [json.loads((tmp_path / name / "metrics.json").read_text())["results"] for name in ("whole", "cut")]
    assert results[0] == results[1] and not list((tmp_path / "cut").glob("*.tmp*"))
