import contextlib
import copy
import importlib
import io
import json
import os
import pickle
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import cyclegan_colors
import data
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
        ("LEARNING_RATE", 10**400),
        ("LEARNING_RATE", np.float32(0.001)),
        ("N_VARIABLES", np.int64(3)),
        ("OUTPUT_DIR", "outputs/mine"),
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


def test_constants_of_data_are_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(cyclegan_colors, "OUTPUT_DIR", tmp_path)
    monkeypatch.setattr(data, "DOMAIN_A", tuple((np.float32(i / 10), 1, 1) for i in range(10)))
    with pytest.raises(SystemExit, match=r"DOMAIN_A is .*: it must be made of Python's own numbers"):
        cyclegan_colors.main()
    monkeypatch.setattr(data, "TRAIN_COLOR_SEED", -1)
    with pytest.raises(SystemExit, match="TRAIN_COLOR_SEED is -1: it must"):
        vae_joint.main()


@pytest.mark.parametrize("script", [vae_joint, cyclegan_colors])
def test_any_constant_of_data_can_be_the_deleted_one(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "OUTPUT_DIR", tmp_path)
    source = Path(data.__file__).read_text(encoding="utf-8")
    names = re.findall(r"^([A-Z]\w*) = ", source, flags=re.MULTILINE)
    assert {"DATASET", "DATA_DIR", "TIMEOUT", "SATURATION", "TEST_COLOR_SEED", "DOMAIN_A", "DOMAINS"} <= {*names}
    for name in names:
        without = re.sub(f"^{name} = ", "gone = ", source, flags=re.MULTILINE)
        exec(without, {"__name__": "data", "__file__": data.__file__})  # no constant is made from another
        with monkeypatch.context() as patch:
            patch.delattr(data, name)
            with pytest.raises(SystemExit, match=rf"^{name} is not defined: put .* among the constants of data\.py\.$"):
                script.main()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("gone", "new", "sentence"),
    [
        ("BETA", None, r"BETA is not defined: put it back among the constants of vae_joint\.py\."),
        ("TAU_DECAY", None, r"TAU_DECAY is not defined: put it back"),
        ("EPOCHS", "EPOCH", r"EPOCH is not a constant that vae_joint\.py knows: rename it to EPOCHS, or delete it\."),
        (None, "MATMUL_PRECISON", r"MATMUL_PRECISON is not .*: rename it to MATMUL_PRECISION, or delete it\."),
    ],
)
def test_a_constant_that_is_deleted_or_misspelt(gone, new, sentence, few_images, tmp_path, monkeypatch):
    monkeypatch.setattr(vae_joint, "OUTPUT_DIR", tmp_path)
    if gone:
        monkeypatch.delattr(vae_joint, gone)
    if new:
        monkeypatch.setattr(vae_joint, new, 1, raising=False)
    with pytest.raises(SystemExit, match=sentence):
        vae_joint.main()


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("vae_continuous", "MATMUL_PRECISION"),
        ("vae_discrete", "MATMUL_PRECISION"),
        ("vae_joint", "MATMUL_PRECISION"),
        ("vae_control", "PRECISION"),
        ("cyclegan_colors", "PRECISION"),
    ],
)
def test_a_deleted_constant_that_only_a_run_reads(name, precision, tmp_path, monkeypatch, capsys):
    script = importlib.import_module(name)
    monkeypatch.setattr(script, "OUTPUT_DIR", tmp_path)
    for gone in ("RESUME", "DEVICE", precision):
        with monkeypatch.context() as patch:
            patch.delattr(script, gone)
            with pytest.raises(
                SystemExit, match=rf"^{gone} is not .*: put it back among the constants of {name}\.py\.$"
            ):
                script.main()
    assert capsys.readouterr().out == "" and not list(tmp_path.iterdir())


def test_every_script_knows_its_constants_and_a_constant_of_your_own(monkeypatch, capsys):
    for name in ("vae_continuous", "vae_discrete", "vae_joint", "cyclegan_colors", "judge"):
        script = importlib.import_module(name)
        monkeypatch.setattr(script, "HIDDEN", 100, raising=False)  # like none that is known
        runs._check_names(vars(script), name)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(vae_joint, "CYCLE_WEIGHT", 2.0, raising=False)
    runs._check_names(vars(vae_joint), "vae_joint.py")
    assert capsys.readouterr().out == "Warning: nothing in vae_joint.py reads CYCLE_WEIGHT.\n"


def test_a_device_that_is_not_there_is_refused():
    missing = "cuda" if not torch.cuda.is_available() else "mps"
    with pytest.raises(SystemExit, match=f"DEVICE is '{missing}', which this machine"):
        runs._device(missing)


def test_a_gpu_that_cannot_be_used(monkeypatch, capsys):
    """Simulated: torch says yes, and the first computation fails, or gives other numbers than it should."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    ones = torch.ones

    def broken(*args, device=None, **options):
        raise RuntimeError("CUDA error: no kernel image is available\nCompile with `TORCH_USE_CUDA_DSA`")

    for stand_in, why in (
        (broken, "CUDA error: no kernel image is available"),
        (lambda *args, device=None, **options: ones(*args).mul(2).requires_grad_(), "it computes wrong numbers"),
    ):
        monkeypatch.setattr(torch, "ones", stand_in)
        assert runs._device("auto").type == "cpu"
        assert capsys.readouterr().out == f"The GPU (cuda) cannot be used ({why}): computing on the CPU.\n"
        with pytest.raises(SystemExit, match=rf"DEVICE is 'cuda', which cannot be used \({why}\): try 'cpu'"):
            runs._device("cuda")
    monkeypatch.setattr(torch, "ones", lambda *args, device=None, **options: ones(*args, **options))
    assert runs._device("auto").type == "cuda"


def test_apples_gpu_is_used_only_where_it_is_named(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(runs, "_fault", lambda device: None)
    assert runs._device("auto").type == "cpu" and "DEVICE = 'mps' uses it" in capsys.readouterr().out
    assert runs._device("mps").type == "mps"


def test_packages_that_are_too_old_or_unknown(tmp_path, monkeypatch, capsys):
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.2.2" if name == "torch" else version(name))
    with pytest.raises(SystemExit, match=r"torch 2\.2\.2 is too old: this needs 2\.6 or newer"):
        runs.start(tmp_path, {})

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with runs.start(tmp_path, {}):
        assert "torch unknown" in capsys.readouterr().out


def test_the_loss_is_not_finite_for_a_reason_that_can_be_the_reason(tmp_path):
    def sentence(step, **constants):
        with pytest.raises(SystemExit) as ended, runs.start(tmp_path, {"LEARNING_RATE": 0.5} | constants) as run:
            run.check_finite(float("nan"), step)
        return ended.value.code

    assert sentence(0).endswith("in epoch 1, step 0: no weight had changed yet, so look at the loss itself.")
    assert sentence(1).endswith("step 1: try a lower LEARNING_RATE.")
    low = {"TAU_START": 1e-30, "TAU_MIN": 1e-30}
    assert sentence(0, **low).endswith("try a higher TAU_START or a higher TAU_MIN.")
    assert sentence(7, BETA=1e30).endswith("try a lower BETA or a lower LEARNING_RATE.")


def test_a_gpu_does_not_wait_for_each_loss(tmp_path):
    with pytest.raises(SystemExit, match="nan in epoch 1, step 3") as ended, runs.start(tmp_path, {}) as run:
        run.device = torch.device("cuda")  # the tensors stay on the CPU
        for step in range(runs.CHECK_EVERY - 1):
            run.check_finite(torch.tensor(float("nan") if step >= 3 else 2.5), step)
        run.check_finite(torch.tensor(1.0), step)
    assert "(it was 2.5 before)" in ended.value.code and step == runs.CHECK_EVERY - 2
    with pytest.raises(SystemExit, match="nan in epoch 1, step 0"), runs.start(tmp_path, {}) as run:
        run.device = torch.device("cuda")
        run.check_finite(torch.tensor(float("nan")), 0)
        run.checkpoint([{"epoch": 1}])
    assert not (tmp_path / "checkpoint.pt").exists()


def test_too_little_memory_is_one_sentence(tmp_path):
    for size in (10**14, 10**18, (10**18, 256)):
        with pytest.raises(SystemExit, match=r"The memory of this machine .* is too small"), runs.start(tmp_path, {}):
            torch.empty(size, dtype=torch.uint8)


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch's newer interface")
def test_precision_set_by_torchs_newer_interface(tmp_path):
    code = """
import torch, runs, pathlib, sys
for part in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul, torch.backends):
    part.fp32_precision = "tf32"
    before = torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision
    with runs.start(pathlib.Path(sys.argv[1]), {"MATMUL_PRECISION": "medium"}):
        assert torch.get_float32_matmul_precision() == "medium"
    assert before == (torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=SCRIPT_DIR, check=True)


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


def test_the_first_epoch_of_which_the_code_carries_nothing_gives_a_warning(tmp_path, capsys):
    warned = []
    with runs.start(tmp_path, {"EPOCHS": 6}) as run:
        history = []
        for epoch, share in enumerate((0.5, 0.01, -0.1, 0.5, 0.0, 0.5), 1):
            losses = {f"{part}_{name}": 1.0 for part in ("train", "test") for name in ("reconstruction", "kl_z")}
            history.append({"epoch": epoch, "seconds": epoch, "explained_variance": share, **losses})
            run.print_epoch(history, {"train": 0.0, "test": 0.0})
            if "Warning: the code carries almost nothing" in capsys.readouterr().out:
                warned.append(epoch)
        for row in history:
            del row["explained_variance"]  # as in the checkpoint of an older version
        run.print_epoch(history, {"train": 0.0, "test": 0.0})
    assert warned == [2, 5]


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


def test_what_decides_whether_a_run_goes_on(tmp_path, monkeypatch, capsys):
    constants = {"EPOCHS": 3, "SEED": 0, "STEP": 0.1, "RESUME": True, "DEVICE": "cpu"}
    model = torch.nn.Linear(2, 2)
    history = [{"epoch": epoch, "seconds": float(epoch)} for epoch in (1, 2, 3)]

    def resume(schedule=(), **edits):
        with runs.start(tmp_path, constants | edits, schedule=schedule) as run:
            return len(run.resume(model=model)), capsys.readouterr().out

    def save(epochs, finish=False, **edits):
        with runs.start(tmp_path, constants | edits) as run:
            run.resume(model=model)
            run.checkpoint(history[:epochs])
            if finish:
                run.finish({"score": 1.0}, history[:epochs])

    save(2)  # stopped: what only figures depend on does not matter, nor does the length
    assert resume(STEP=0.2)[0] == resume(DEVICE="auto")[0] == resume(EPOCHS=2)[0] == resume(EPOCHS=9)[0] == 2
    assert resume(EPOCHS=1)[0] == 0 and resume(SEED=1)[0] == 0
    n, out = resume(("EPOCHS",), EPOCHS=9)
    assert n == 0 and "EPOCHS, which the schedule depends on, was 3 in the unfinished run, and is 9." in out
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    n, out = resume()
    assert n == 2 and re.search(r"Not what it was: threads \d+ → 77\. The numbers may differ from those of a run", out)

    save(3, finish=True)  # finished
    assert {path.name for path in tmp_path.glob("*.pt")} == {"finished.pt"}
    assert resume()[0] == resume(EPOCHS=2)[0] == resume(EPOCHS=9, SEED=1)[0] == 0
    assert resume(EPOCHS=9, STEP=0.2)[0] == 3
    assert "afresh" not in resume(SEED=1)[1]  # a longer run was not asked for
    assert "Starting afresh: SEED was 0 in the finished run, and is 1." in resume(EPOCHS=9, SEED=1)[1]
    assert "Starting afresh: NEW was not there in the finished run, and is 1." in resume(EPOCHS=9, NEW=1)[1]
    monkeypatch.delitem(constants, "SEED")
    assert "Starting afresh: SEED was 0 in the finished run, and is gone." in resume(EPOCHS=9)[1]
    monkeypatch.setitem(constants, "SEED", 0)
    save(1, SEED=1)  # another one, stopped: both can go on
    assert resume(EPOCHS=9)[0] == 3 and resume(SEED=1)[0] == 1
    for path in tmp_path.glob("*.pt"):
        path.unlink()
    assert "of 3 epochs cannot go on, because its last state is not kept here." in resume(EPOCHS=4)[1]
    assert "cannot go on, because the schedule depends on EPOCHS." in resume(("EPOCHS",), EPOCHS=4)[1]
    assert "afresh" not in resume(EPOCHS=4, SEED=1)[1] + resume()[1]


def test_the_homeworks_values_are_the_defaults():
    common = {"EPOCHS": 30, "BATCH_SIZE": 120, "LEARNING_RATE": 0.001}
    gaussian = {"LATENT_DIM": 2}
    categorical = {"N_VARIABLES": 3, "N_CATEGORIES": 20, "HARD": False}
    tau = {"TAU_START": 1.0, "TAU_DECAY": 0.0003, "TAU_MIN": 0.5}
    assert (common | gaussian).items() <= runs.constants(vars(vae_continuous)).items()
    assert (common | categorical | tau).items() <= runs.constants(vars(vae_discrete)).items()
    joint = common | gaussian | categorical | tau | {"BETA": 1.0, "Z_VARIANCE": 5.0}
    assert joint.items() <= runs.constants(vars(vae_joint)).items()


def test_an_interrupt_ends_with_one_line(tmp_path, capsys):
    def stopped(seed, *actions):
        with pytest.raises(SystemExit) as end, runs.start(tmp_path, {"SEED": seed, "RESUME": True}) as run:
            for action in actions:
                action(run)
            capsys.readouterr()
            raise KeyboardInterrupt
        assert end.value.code == 130
        return capsys.readouterr().err

    def save(run):
        run.checkpoint([{"epoch": 1, "seconds": 1.0}])

    none, some = "no epoch was finished or saved", "the last whole epoch is saved, run again to go on"
    assert stopped(1) == f"\nStopped: {none}.\n"
    assert stopped(1, save) == f"\nStopped: {some}.\n"
    assert stopped(1, runs.Run.resume) == f"\nStopped: {some}.\n"
    assert stopped(2, runs.Run.resume) == f"\nStopped: {none}.\n"  # another run's
    assert stopped(1) == f"\nStopped: {none}.\n"  # the one before it has saved


def test_a_log_that_cannot_be_written_or_encoded_ends_nothing(monkeypatch):
    read, write = os.pipe()
    with open(write, "w", buffering=1) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        os.close(read)
        with runs.lasting_log():
            print("nobody reads this")
            print("nor this", flush=True)
        assert sys.stdout is stream
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", narrow)
    with runs.lasting_log():
        print("A → B ± 1", flush=True)
    assert narrow.buffer.getvalue().decode("cp1252").strip() == "A ? B ± 1"
    narrow.close()
    with runs.lasting_log():
        print("closed")


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
