import io
import json
import os
import pickle
import platform
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from conftest import SCRIPTS

import data
import judge
import metrics
import runs
import vae_joint

CPU = torch.device("cpu")
ROW = {"epoch": 1, "seconds": 100.0, "loss": 1.5}


def start(folder, **constants):
    return runs.start(folder, {"__file__": vae_joint.__file__, "RESUME": True} | constants, ())


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------------------------------- constants


def test_limits():
    """Each rule's ends, and what is outside; some constant of a script follows each rule."""
    nan, inf = float("nan"), float("inf")
    for name, allowed, refused in (
        ("SEED", (0, 2**63 - 1), (-1, 2**64, 0.5, True)),
        ("EPOCHS", (1,), (0, 2.5, True, None, "3")),
        ("EMA_DECAY", (0, 0.0, 0.5), (1.0, -0.1, nan)),
        ("DECAY_FROM", (0, 1, 0.5), (1.5, -0.1)),
        ("LEARNING_RATE", (1, 0.001), (0, -0.001, nan, inf, "0.1", 10**400, True)),
        ("CYCLE_WEIGHT", (0, 40.0), (-1.0, inf)),
        ("HARD", (True, False), (1, "yes")),
        ("PRECISION", ("auto", "float32"), ("float16", "nn")),
        ("OUTPUT_DIR", (), ("mine",)),
        ("DEVICE", ("auto", "cpu"), ("gpu", "CPU")),
    ):
        for value in allowed:
            runs.check({"OTHER": -1, name: value})
        for value in refused:
            with pytest.raises(SystemExit, match=rf"^{name} is [^\n]*: it must [^\n]*\.$"):
                runs.check({name: value})
    names = [name for script in [*SCRIPTS, judge] for name in runs.constants(vars(script))]
    assert all(any(re.fullmatch(pattern, name) for name in names) for pattern, *_ in runs.LIMITS)


def test_a_refused_constant_touches_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(vae_joint, "OUTPUT_DIR", tmp_path / "out")
    monkeypatch.setattr(vae_joint, "EPOCHS", 0)
    with pytest.raises(SystemExit, match="EPOCHS is 0"):
        vae_joint.main()
    assert not (tmp_path / "out").exists()


def test_constants_are_the_literals_of_script_and_data():
    constants = runs.constants(vars(vae_joint))
    assert constants["N_CATEGORIES"] == 20 and constants["DATASET"] == "MNIST"
    assert not constants.keys() & {"OUTPUT_DIR", "F", "DOMAIN_A"}
    assert "EPOCHS" in runs.constants({"EPOCHS": [3]}, ())  # for check() to refuse


def test_images_of_another_kind_are_refused_before_training(few_images, tmp_path, monkeypatch, capsys):
    few = {train: data.load(train) for train in (True, False)}
    kinds = {"float": lambda x, y: (x / 255, y), "digits": lambda x, y: (x[y < 5], y[y < 5])}
    for script in [*SCRIPTS, judge]:
        for word, change in kinds.items():
            with monkeypatch.context() as patch, pytest.raises(SystemExit, match=rf"^data\.load [^\n]*{word}[^\n]*\.$"):
                patch.setattr(data, "load", lambda train, change=change: change(*few[train]))
                patch.setattr(script, "OUTPUT_DIR", tmp_path)
                script.main()
    assert not re.search("epoch +1/|updates", capsys.readouterr().out)


# ---------------------------------------------------------------------------------------- the shell


@pytest.fixture
def shell(monkeypatch):
    """shell(*arguments) → a run of vae_joint.py from a shell: its status."""
    script = types.ModuleType("__main__", vae_joint.__doc__)
    script.__file__ = vae_joint.__file__
    monkeypatch.setitem(sys.modules, "__main__", script)

    def command(*arguments, main, rows=()):
        monkeypatch.setattr(sys, "argv", ["vae_joint.py", *arguments])
        monkeypatch.chdir(runs.ROOT)
        try:
            runs.command(main, rows)
        except SystemExit as end:
            return end.code
        return 0

    return command


def test_arguments(shell, capsys, monkeypatch):
    called = []
    assert shell("--help", main=called.append) == 0 and vae_joint.__doc__.strip() in capsys.readouterr().out
    assert shell("--epochs=3", main=called.append) == shell("x", main=called.append) == 2
    assert not called and "x" in capsys.readouterr().err
    assert shell("b", main=called.append, rows=("a", "b")) == 0 and called == ["b"]
    assert shell("c", main=called.append, rows=("a", "b")) == 2
    assert shell(main=lambda: called.append("all")) == 0 and called == ["b", "all"]
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])  # an editor
    runs.command(lambda: called.append("cell"))
    assert called == ["b", "all", "cell"]


def test_an_interrupt_ends_with_one_line(shell, capsys):
    def interrupted():
        raise KeyboardInterrupt

    assert shell(main=interrupted) == 130
    assert capsys.readouterr().err.strip().count("\n") == 0


def test_a_script_pasted_into_a_notebook(few_images, tmp_path, monkeypatch):
    """Its cells have no __file__, the arguments are the kernel's, the output is only written to."""
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    source = (Path(vae_joint.__file__)).read_text(encoding="utf-8").replace("EPOCHS = 30", "EPOCHS = 1")
    exec(source.replace("figures(averaged", "id(0) #"), {"__name__": "__main__", "MINE": 1})
    written = json.loads((tmp_path / "outputs" / "vae_joint" / "metrics.json").read_text())
    assert written["code"] | {"judge": 0} == {"script": None, "fingerprint": None, "judge": 0, "images": 400}


# ---------------------------------------------------------------------------------- the fingerprint


def test_the_fingerprint_follows_what_trains(edited):
    def of(edit, file="vae_joint"):
        edited("data", *[edit] * (file == "data"))
        return runs.fingerprint(Path(edited("vae_joint", *[edit] * (file != "data")).__file__))

    usual = of(("", ""))
    for edit in (
        ("# Training.", "# The training."),
        ('"""Images (B, 3, 28, 28) → mu', '"""Pictures → mu'),
        ("\nBETA = 1.0", "\nBETA = 2.0\nOTHER: tuple = (1, 2)"),
        ("tau: float, hard: bool = False) ->", "tau, hard=False) ->"),
        ("run.end_training()", "print('scoring')\n        run.end_training()"),
        ("radius = codes", "radius = 2 * codes"),  # in figures()
    ):
        assert of(edit) == usual, edit
    for edit in (("is damaged or not", "is not"), ("\nSATURATION = (1.0", "\nSATURATION = (0.5")):
        assert of(edit, "data") == usual, edit
    edits = [
        ("nn.ReLU()", "nn.Tanh()"),
        ("+ BETA * (", "- BETA * ("),
        ("step % 10", "step % 5"),
        ("logvar.exp() - 1", "logvar.exp()"),
        ("nn.init.constant_", "nn.init.zeros_"),
    ]
    head = "class JointVAE(nn.Module):"
    for line in ("ACT = nn.{}", "ACT: type = nn.{}", "from torch.nn import {} as ACT", "Act = ACT = (nn.{},)"):
        edits += [(head, f"{line.format(name)}\n\n\n{head}\n    act = ACT\n") for name in ("ReLU", "Tanh")]
    gammas = [("def colorize", f"GAMMA = {gamma}\n\n\n@(lambda f: GAMMA and f)\ndef colorize") for gamma in (1, 2)]
    others = [*map(of, edits), *(of(edit, "data") for edit in [("/ 255) * colors", "/ 256) * colors"), *gammas])]
    assert len({usual, *others}) == 1 + len(others)


@pytest.mark.parametrize(
    "lines", ["from vae_joint import JointVAE as {0}", "import vae_joint\n{0} = vae_joint.JointVAE"]
)
def test_the_fingerprint_follows_an_imported_network(lines, edited):
    found = []
    for edit in (("nn.ReLU()", "nn.ReLU()"), ("nn.ReLU()", "nn.Tanh()")):
        path = Path(edited("vae_joint", edit).__file__).with_name("mine.py")
        path.write_text(f"{lines.format('JointVAE')}\ndef main():\n    with run:\n        JointVAE(2, 3, 4)\n")
        found.append(runs.fingerprint(path))
    assert found[0] != found[1]


OTHER_PYTHON = f"""
import ast, hashlib, sys
from pathlib import Path
from typing import Any
data = type("data", (), {{"RANDOM_COLORS": {data.RANDOM_COLORS}, "DOMAINS": {data.DOMAINS}}})
source = Path(sys.argv[1]).read_text(encoding="utf-8")
for node in ast.parse(source).body:
    names = [getattr(node, "name", ""), *(getattr(target, "id", "") for target in getattr(node, "targets", []))]
    if {{"fingerprint", "_plain", "_names", "NOT_TRAINING"}} & {{*names}}:
        exec(ast.get_source_segment(source, node))
print(*(fingerprint(Path(path)) for path in sys.argv[2:]))
"""


def test_the_fingerprint_is_the_same_in_every_python():
    pythons = sorted(Path.home().glob(".pyenv/versions/3.1?.*/bin/python"))
    if not pythons:
        pytest.skip("no other Python is here")
    paths = [script.__file__ for script in SCRIPTS]
    here = [runs.fingerprint(Path(path)) for path in paths]
    for python in pythons:
        command = [str(python), "-I", "-c", OTHER_PYTHON, runs.__file__, *paths]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        assert found.split() == here, python


# ------------------------------------------------------------------------------- a run that goes on


def test_an_interrupted_run_goes_on_unless_what_trains_was_edited(edited, few_images, tmp_path, monkeypatch, capsys):
    def interrupt(*args):
        raise KeyboardInterrupt

    def log(*edits, **constants):
        script = edited("vae_joint", *edits)
        vars(script).update({"EPOCHS": 2} | constants)
        with pytest.raises(KeyboardInterrupt):
            script.main()
        return capsys.readouterr().out

    with monkeypatch.context() as patch:
        patch.setattr(metrics, "print_epoch", interrupt)  # after the first checkpoint
        log()
    monkeypatch.setattr(metrics, "epoch_row", interrupt)  # before the next
    before = files_of(tmp_path / "out")
    assert "Going on after epoch 1" in log() and "Going on" in log(Z_VARIANCE=2.0, RESUME=True)
    for edit in (("nn.ReLU()", "nn.Tanh()"), ("+ BETA * (", "- BETA * (")):
        assert re.search("afresh.* code that trains", log(edit))
    assert re.search("afresh.* SEED", log(SEED=1))
    few_images(350, 300)
    assert re.search("afresh.* images", log())
    assert files_of(tmp_path / "out") == before


class Malicious:
    def __reduce__(self):
        return (print, ("code in the file was run",))


def test_resume(tmp_path, capsys, monkeypatch):
    def resume(model, **constants):
        with start(tmp_path, **constants) as run:
            return run.resume(model=model), run.seconds()

    model, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert resume(model)[0] == []
    with start(tmp_path, RANGE=(1, 2)) as run:
        run.resume(model=model)
        run.checkpoint([ROW])
    expected = torch.rand(3)
    history, seconds = resume(other, RANGE=(1, 2))
    assert history == [ROW] and 100 <= seconds < 200
    assert torch.equal(other.weight, model.weight) and torch.equal(torch.rand(3), expected)
    assert "may differ" not in capsys.readouterr().out
    assert resume(other, RANGE=(1, 2), RESUME=False)[0] == []
    assert resume(other, RANGE=(1, 3))[0] == resume(other, RANGE=(1, 2), NEW=1)[0] == resume(other)[0] == []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert resume(other, RANGE=(1, 2))[0] == [ROW] and re.search("threads .*may differ", capsys.readouterr().out)
    with pytest.raises(SystemExit, match="is not a checkpoint of this script"):
        resume(torch.nn.Linear(3, 3), RANGE=(1, 2))
    for content in (b"half", pickle.dumps(Malicious(), 2)):
        (tmp_path / "checkpoint.pt").write_bytes(content)
        with pytest.raises(SystemExit, match="damaged"):
            resume(other)
        assert (tmp_path / "checkpoint.pt").read_bytes() == content
    for content in ({}, [1], {"code": None}):
        runs.save_torch(tmp_path / "checkpoint.pt", content)
        with pytest.raises(SystemExit, match="is not a checkpoint of this script"):
            resume(other)
    assert "code in the file was run" not in capsys.readouterr().out


def test_a_checkpoint_has_finite_numbers(tmp_path):
    for bad in (float("nan"), float("inf")):
        with start(tmp_path) as run:
            run.resume(model=torch.nn.Linear(2, 2))
            run.checkpoint([ROW])
            before = files_of(tmp_path)
            with pytest.raises(SystemExit, match=rf"^loss [^\n]*{bad}[^\n]*epoch 2[^\n]*\.$"):
                run.checkpoint([ROW, ROW | {"epoch": 2, "loss": bad}])
        assert files_of(tmp_path) == before


def test_finish(tmp_path, capsys):
    with start(tmp_path, RANGE=(1, 2)) as run:
        run.code["images"] = 9
        run.checkpoint([ROW])
        assert run.finish({"score": 0.5}, [ROW]) == {"score": 0.5}
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.json", ".lock"}
    written = runs.load_results(tmp_path / "metrics.json")
    assert written["constants"]["RANGE"] == [1, 2] and written["history"] == [ROW] and written["versions"]["torch"]
    assert written["code"] == {"script": "vae_joint", "fingerprint": run.code["fingerprint"], "images": 9}
    assert "0.5000" in capsys.readouterr().out
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(SystemExit, match="missing or damaged"), start(tmp_path):
        pass
    assert (tmp_path / "metrics.json").read_text() == "{"


def test_one_run_at_a_time_writes_to_a_folder_and_leaves_torch_as_it_was(tmp_path, monkeypatch):
    mode = torch.get_float32_matmul_precision
    torch.set_float32_matmul_precision("high")
    for error, amx, trained in ((ZeroDivisionError, False, "medium"), (KeyboardInterrupt, True, "highest")):
        monkeypatch.setattr(runs, "CAPABILITIES", {"amx_bf16": amx})
        with pytest.raises(error), start(tmp_path) as run:
            assert (mode(), run.resume(model=torch.nn.Linear(2, 2)), mode()) == ("highest", [], trained)
            with pytest.raises(SystemExit, match="Another run is writing to"), start(tmp_path):
                pass
            assert (run.end_training(), mode()) == (None, "highest")
            raise error
        assert mode() == "high"
    torch.set_float32_matmul_precision("highest")


def test_precision_is_bfloat16_where_the_processor_is_known_to_be_fast(tmp_path, monkeypatch):
    for known, dtype in (({"avx512_bf16": True}, "bfloat16"), ({"amx_bf16": True}, "bfloat16"), ({}, "float32")):
        monkeypatch.setattr(runs, "CAPABILITIES", known)
        with start(tmp_path, PRECISION="auto", DEVICE="cpu") as run, run.autocast():
            assert str(torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype) == f"torch.{dtype}"
        assert run.versions["precision"] == dtype
    assert runs.precision("auto", torch.device("cuda")) == torch.float32
    assert runs.precision("bfloat16", CPU) == torch.bfloat16 and runs.precision("float32", CPU) == torch.float32


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that gives memory back")
def test_training_steps_reuse_their_memory():
    import resource

    model, x = vae_joint.JointVAE(2, 3, 20), torch.rand(120, 3, 28, 28)
    optimizer = torch.optim.Adam(model.parameters(), 0.001, fused=True)
    runs.keep_freed_memory(True)
    for step in range(20):
        if step == 15:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        optimizer.zero_grad()
        sum(vae_joint.elbo_terms(model, x, 0.7).values()).backward()
        optimizer.step()
    runs.keep_freed_memory(False)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults < 5 * 300  # pages of five steps; else 1,000 a step and more


# -------------------------------------------------------------------------------------------- files


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "file"
    runs.write_text(path, "old →")
    for error, ends in ((OSError(28, "No space left on device"), SystemExit), (ZeroDivisionError(), ZeroDivisionError)):
        with pytest.raises(ends) as ended, runs.atomic_write(path) as temporary:
            temporary.write_text("half of the n")
            raise error
        assert path.read_text(encoding="utf-8") == "old →" and os.listdir(tmp_path) == ["file"]
        assert ends is not SystemExit or "No space left on device" in ended.value.code


def test_a_disk_that_refuses(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SystemExit, match=r"^[^\n]*out cannot be written: [^\n]*\.$"), start(tmp_path / "file" / "out"):
        pass

    def refuse(*args, **options):
        raise OSError(30, "Read-only file system")

    with start(tmp_path) as run:
        run.resume(model=torch.nn.Linear(2, 2))
        run.checkpoint([ROW])
        before = files_of(tmp_path)
        monkeypatch.setattr(Path, "write_bytes", refuse)
        with pytest.raises(SystemExit, match=r"checkpoint\.pt [^\n]*Read-only file system[^\n]*\.$"):
            run.checkpoint([ROW, ROW | {"epoch": 2}])
    assert files_of(tmp_path) == before


def test_load_model_refuses_what_it_did_not_write(tmp_path, capsys):
    path = tmp_path / "model.pt"

    def refused(words):
        with pytest.raises(SystemExit, match=rf"^{path} [^\n]*{words}[^\n]*\.$"):
            runs.load_model(path, vae_joint.JointVAE)

    refused("missing, damaged")
    runs.save_model(path, vae_joint.JointVAE(1, 2, 3), 1, 2, 3)
    assert not [p for p in runs.load_model(path, vae_joint.JointVAE).parameters() if p.requires_grad]
    path.write_bytes(path.read_bytes()[:-5000])
    refused("damaged")
    for content in (Malicious(), {"class": "JointVAE", "sizes": [1, 2, 3], "weights": {}, "x": Malicious()}):
        torch.save(content, path)
        refused("damaged")
    for content in ({"class": "JointVAE", "sizes": [2, 2, 3], "weights": {}}, {"class": "JointVAE", "sizes": [2]}):
        runs.save_torch(path, content)
        refused("other sizes or version")
    for content in ([1, 2], {"class": "DiscreteVAE"}):
        runs.save_torch(path, content)
        refused("not hold a JointVAE")
    assert "code in the file was run" not in capsys.readouterr().out
