import contextlib
import copy
import json
import os
import pickle
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import runs
import vae_continuous
import vae_discrete
import vae_joint

SCRIPT_DIR = Path(runs.__file__).parent


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("EPOCHS", 0),
        ("EPOCHS", 2.5),
        ("EPOCHS", True),
        ("EPOCHS", None),
        ("LEARNING_RATE", [0.001]),
        ("BATCH_SIZE", 0),
        ("BATCH_SIZE", 401),
        ("LEARNING_RATE", -0.001),
        ("LEARNING_RATE", 0),
        ("LEARNING_RATE", float("nan")),
        ("LEARNING_RATE", "0.1"),
        ("LATENT_DIM", 0),
        ("N_VARIABLES", 0),
        ("N_CATEGORIES", 0),
        ("N_CATEGORIES", 1),
        ("TAU_START", 0),
        ("TAU_MIN", 0),
        ("TAU_MIN", 2),
        ("TAU_DECAY", -1),
        ("SEED", -1),
        ("SEED", 2**64),
        ("BETA", -0.1),
        ("HARD", 1),
        ("RESUME", "yes"),
        ("Z_VARIANCE", 0),
        ("DEVICE", "gpu"),
        ("MATMUL_PRECISION", "float32"),
        ("MATMUL_PRECISION", None),
        ("DEVICE", "cuda:9"),
    ],
)
def test_an_impossible_constant_is_refused_in_one_sentence(name, value, few_images, tmp_path, monkeypatch, capsys):
    (tmp_path / "metrics.json").write_text("old")
    monkeypatch.setattr(vae_joint, "OUTPUT_DIR", tmp_path)
    monkeypatch.setattr(vae_joint, name, value)
    with pytest.raises(SystemExit, match=f"{name} is .*: it must") as refusal:
        vae_joint.main()
    assert "\n" not in refusal.value.code and refusal.value.code.endswith(".")
    assert (tmp_path / "metrics.json").read_text() == "old"
    assert "epoch 1" not in capsys.readouterr().out


def test_requests_of_the_continuous_model_are_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(vae_continuous, "OUTPUT_DIR", tmp_path)
    for requests in ((), ((10, 0),), ((1, 360),), [(1, 2)], (1, 2), ((1, "red"),)):
        monkeypatch.setattr(vae_continuous, "REQUESTS", requests)
        with pytest.raises(SystemExit, match="REQUESTS is"):
            vae_continuous.main()


def test_a_device_that_is_not_there_is_refused():
    missing = "cuda" if not torch.cuda.is_available() else "mps"
    with pytest.raises(SystemExit, match=f"DEVICE is '{missing}', which this machine"):
        runs._device(missing)


def test_precision_is_bfloat16_where_the_processor_is_known_to_be_fast(tmp_path, monkeypatch, capsys):
    cpu = torch.device("cpu")
    for known, dtype in (({"avx512_bf16": True}, "bfloat16"), ({"amx_bf16": True}, "bfloat16"), ({}, "float32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=known: known, raising=False)
        with runs.start(tmp_path, {"PRECISION": "auto", "DEVICE": "cpu"}) as run, run.autocast():
            assert str(torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype) == f"torch.{dtype}"
        assert f"precision {dtype}" in capsys.readouterr().out
    assert runs.precision("auto", torch.device("cuda")) == torch.float32
    assert runs.precision("bfloat16", cpu) == torch.bfloat16 and runs.precision("float32", cpu) == torch.float32


@pytest.mark.parametrize("name", ["medium", "highest"])
def test_gradients_of_a_training_step_are_those_in_float64(name, test_set, monkeypatch):
    """Where "medium" rounds the factors of matrix products, to bfloat16 or TF32, they are close; else equal."""
    x = torch.full((256, 256), 1 + 2**-12)  # 1, if it is rounded
    torch.set_float32_matmul_precision(name)
    rounds = (x @ x)[0, 0].item() == 256
    assert name == "medium" or not rounds
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)  # no noise
    torch.manual_seed(0)
    model = vae_continuous.ContinuousVAE(2)
    x = test_set.colored(slice(120))
    exact = copy.deepcopy(model).double()
    sum(vae_continuous.elbo_terms(exact, x.double()).values()).backward()
    sum(vae_continuous.elbo_terms(model, x).values()).backward()
    for parameter, other in zip(model.parameters(), exact.parameters(), strict=True):
        assert (parameter.grad - other.grad).norm() / other.grad.norm() < (0.1 if rounds else 1e-5)


def test_constants_are_the_literals_of_script_and_data():
    constants = runs.constants(vars(vae_joint))
    assert constants["N_CATEGORIES"] == 20 and constants["DATASET"] == "MNIST"
    assert "OUTPUT_DIR" not in constants and "F" not in constants
    json.dumps(constants)


def test_atomic_write_leaves_the_old_one_when_it_fails(tmp_path):
    path = tmp_path / "file"
    with runs.atomic_write(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(SystemExit, match=f"{path} could not be written"), runs.atomic_write(path) as temporary:
        temporary.write_text("half of the n")
        raise OSError(28, "No space left on device")
    with pytest.raises(ZeroDivisionError), runs.atomic_write(path) as temporary:
        temporary.write_text("half of the n")
        raise ZeroDivisionError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_said_in_one_sentence():
    with pytest.raises(SystemExit, match="No space left"), runs.atomic_write(Path("/tmp/x")):
        Path("/dev/full").write_text("x")


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    hold = f"import runs, pathlib; run = runs.start(pathlib.Path({str(tmp_path)!r}), {{}}); print('held', flush=True)"
    holder = subprocess.Popen(
        [sys.executable, "-c", f"{hold}; input()"],
        cwd=SCRIPT_DIR,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert "held\n" in iter(holder.stdout.readline, "")
    with pytest.raises(SystemExit, match="Another run is writing to"):
        runs.start(tmp_path, {})
    holder.kill()  # the lock goes with the process, however it ends
    holder.wait()
    with runs.start(tmp_path, {}), pytest.raises(SystemExit, match="Another run is writing to"):
        runs.start(tmp_path, {})


@pytest.mark.parametrize("error", [None, ZeroDivisionError, KeyboardInterrupt])
def test_a_run_that_ends_frees_its_folder_and_restores_torchs_settings(error, tmp_path):
    torch.set_float32_matmul_precision("high")
    with contextlib.suppress(ZeroDivisionError, SystemExit), runs.start(tmp_path, {"MATMUL_PRECISION": "medium"}):
        assert torch.get_float32_matmul_precision() == "medium"
        if error:
            raise error
    assert torch.get_float32_matmul_precision() == "high"
    other = f"import runs, pathlib; runs.start(pathlib.Path({str(tmp_path)!r}), {{}})"
    subprocess.run([sys.executable, "-c", other], cwd=SCRIPT_DIR, check=True, stdout=subprocess.DEVNULL)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SystemExit, match="cannot be written"):
        runs.start(tmp_path / "file" / "outputs", {})


class Malicious:
    def __reduce__(self):
        return (print, ("code in the file was run",))


def test_load_model_refuses_what_it_did_not_write(tmp_path, capsys):
    path = tmp_path / "model.pt"
    with pytest.raises(SystemExit, match="is not there"):
        vae_joint.load_model(path)
    runs.save_model(path, vae_discrete.DiscreteVAE(3, 20), 3, 20)
    with pytest.raises(SystemExit, match="does not hold a JointVAE"):
        vae_joint.load_model(path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(SystemExit, match="is damaged"):
        vae_discrete.load_model(path)
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(SystemExit, match="is damaged"):
        vae_discrete.load_model(path)
    torch.save({"class": "DiscreteVAE", "sizes": [2, 2], "weights": {}, "x": Malicious()}, path)
    with pytest.raises(SystemExit, match="is damaged"):
        vae_discrete.load_model(path)
    runs.save_torch(path, {"class": "DiscreteVAE", "sizes": [2, 2], "weights": {}})
    with pytest.raises(SystemExit, match="of other sizes or version"):
        vae_discrete.load_model(path)
    assert "code in the file was run" not in capsys.readouterr().out


def test_resume(tmp_path, capsys):
    constants = {"EPOCHS": 3, "RANGE": (1, 2), "RESUME": True}
    row = {"epoch": 1, "seconds": 100.0}

    def resume(model, **edits):
        with runs.start(tmp_path, constants | edits) as run:
            return run.resume(model=model), run.seconds()

    model = torch.nn.Linear(2, 2)
    assert resume(model)[0] == []
    with runs.start(tmp_path, constants) as run:
        run.resume(model=model)
        run.checkpoint([row])
    expected = torch.rand(3)
    other = torch.nn.Linear(2, 2)
    history, seconds = resume(other)
    assert history == [row] and 100 <= seconds < 200
    assert torch.equal(other.weight, model.weight) and torch.equal(torch.rand(3), expected)
    assert resume(other, RESUME=False)[0] == []
    with runs.start(tmp_path, constants | {"RESUME": False}) as run:
        run.checkpoint([row])
    with pytest.raises(SystemExit, match="is not a checkpoint of this script"):  # it has no model
        resume(other)
    with runs.start(tmp_path, constants | {"RESUME": False}) as run:
        run.resume(model=model)
        run.checkpoint([row])
    assert resume(other)[0] == [row]  # RESUME decides no number
    assert resume(other, RANGE=(1, 3))[0] == []
    assert "Starting afresh: RANGE was [1, 2] in the unfinished run, and is [1, 3]." in capsys.readouterr().out
    with pytest.raises(SystemExit, match="is not a checkpoint of this script"):
        resume(torch.nn.Linear(3, 3))
    for content in (b"half", pickle.dumps(Malicious())):
        (tmp_path / "checkpoint.pt").write_bytes(content)
        with pytest.raises(SystemExit, match="is damaged"):
            resume(other)
        assert (tmp_path / "checkpoint.pt").read_bytes() == content
    assert "code in the file was run" not in capsys.readouterr().out


def test_the_homeworks_values_are_the_defaults():
    common = {"EPOCHS": 30, "BATCH_SIZE": 120, "LEARNING_RATE": 0.001}
    gaussian = {"LATENT_DIM": 2}
    categorical = {"N_VARIABLES": 3, "N_CATEGORIES": 20, "HARD": False}
    tau = {"TAU_START": 1.0, "TAU_DECAY": 0.0003, "TAU_MIN": 0.5}
    assert (common | gaussian).items() <= runs.constants(vars(vae_continuous)).items()
    assert (common | categorical | tau).items() <= runs.constants(vars(vae_discrete)).items()
    joint = common | gaussian | categorical | tau | {"BETA": 1.0, "Z_VARIANCE": 5.0}
    assert joint.items() <= runs.constants(vars(vae_joint)).items()


def test_an_interrupt_ends_with_one_line(tmp_path):
    def stopped(seed, *actions):
        code = f"""
import pathlib, runs
for action in {actions!r}:
    with runs.start(pathlib.Path({str(tmp_path)!r}), {{"SEED": {seed}, "RESUME": True}}) as run:
        exec(action)
"""
        ended = subprocess.run([sys.executable, "-c", code], cwd=SCRIPT_DIR, capture_output=True, text=True)
        assert ended.returncode == 130
        return ended.stderr

    none, some = "no epoch was finished or saved", "the last whole epoch is saved, run again to go on"
    save, interrupt = "run.checkpoint([{'epoch': 1, 'seconds': 1}]);", "raise KeyboardInterrupt"
    assert stopped(1, interrupt) == f"\nStopped: {none}.\n"
    assert stopped(1, save + interrupt) == f"\nStopped: {some}.\n"
    assert stopped(1, "run.resume();" + interrupt) == f"\nStopped: {some}.\n"
    assert stopped(2, "run.resume();" + interrupt) == f"\nStopped: {none}.\n"  # another run's
    assert stopped(1, save, interrupt) == f"\nStopped: {none}.\n"  # the one before it has saved


TRAINING = """
import resource, torch, runs, vae_joint
runs.keep_freed_memory()
model = vae_joint.JointVAE(2, 3, 20)
optimizer = torch.optim.Adam(model.parameters(), 0.001, fused=True)
x = torch.rand(120, 3, 28, 28)
for step in range(60):
    if step == 40:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    optimizer.zero_grad()
    sum(vae_joint.elbo_terms(model, x, 0.7).values()).backward()
    optimizer.step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that gives memory back")
def test_training_steps_reuse_their_memory():
    command = [sys.executable, "-c", TRAINING]
    ended = subprocess.run(command, cwd=SCRIPT_DIR, check=True, stdout=subprocess.PIPE, text=True)
    assert int(ended.stdout) < 20 * 300  # pages that twenty steps took from the system; else 1,000 a step and more
