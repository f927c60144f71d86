"""Faults as a user meets them: the real scripts in a process of their own, one sentence, status 1, nothing lost."""

import os
import shutil
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest
import torch

import data
import judge
import runs
import vae_joint

ROOT = Path(runs.__file__).parent
SETTINGS = """
    import sys
    from pathlib import Path
    import data, judge, plots, {script} as script
    plots.DPI = 40
    load = data.load
    data.load = lambda train: tuple(part[: 400 if train else 300] for part in load(train))
    script.OUTPUT_DIR, script.DEVICE, script.EPOCHS = Path(sys.argv[1]), "cpu", 2
"""


def run_script(script: str, folder: Path, settings: str = "", **options) -> subprocess.CompletedProcess:
    """Runs script.main() on a few images in a fresh Python, after some more settings."""
    code = "\n".join([textwrap.dedent(SETTINGS).format(script=script), textwrap.dedent(settings), "script.main()"])
    command = [sys.executable, "-c", code, str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)


def refused(ended: subprocess.CompletedProcess, sentence: str) -> None:
    assert ended.returncode == 1 and "Traceback" not in ended.stderr, ended.stderr
    assert sentence in ended.stderr and ended.stderr.count("\n") == 1 and ended.stderr.endswith(".\n")
    assert "epoch 1/" not in ended.stdout and "updates |" not in ended.stdout


@pytest.mark.parametrize(
    ("script", "setting", "sentence"),
    [
        ("vae_discrete", "script.N_CATEGORIES = 1", "N_CATEGORIES is 1: it must be a whole number, 2 or more."),
        (
            "vae_continuous",
            "script.BATCH_SIZE = 401",
            "BATCH_SIZE is 401: it must not exceed the 400 training images of an epoch.",
        ),
        ("vae_joint", "data.SATURATION = (1, 0)", "SATURATION in data.py is (1, 0): it must be (low, high)"),
        ("cyclegan_colors", "data.DOMAIN_A = data.DOMAIN_A[:9]", "it must be a tuple of ten colour names"),
    ],
)
def test_a_refusal_is_one_sentence_and_status_1(script, setting, sentence, tmp_path):
    (tmp_path / "metrics.json").write_text("old")
    refused(run_script(script, tmp_path, setting), sentence)
    assert (tmp_path / "metrics.json").read_text() == "old"


def truncate(files):
    files[0].write_bytes(files[0].read_bytes()[:-1000])


def flip_a_bit(files):
    content = bytearray(files[0].read_bytes())
    content[len(content) // 2] ^= 1
    files[0].write_bytes(content)


def swap(files):
    first, second = (file.read_bytes() for file in files)
    files[0].write_bytes(second)
    files[1].write_bytes(first)


@pytest.mark.parametrize(
    ("script", "damage"),
    [("vae_joint", truncate), ("vae_joint", flip_a_bit), ("vae_joint", swap), ("cyclegan_colors", truncate)],
)
def test_damaged_data_are_refused_before_training(script, damage, tmp_path):
    raw = tmp_path / "data" / "MNIST" / "raw"
    shutil.copytree(Path(data.DATA_DIR) / "MNIST", tmp_path / "data" / "MNIST")
    for extracted in raw.glob("*-ubyte"):
        extracted.unlink()
    files = sorted(raw.glob("*images*.gz"), reverse=True)  # the training images first
    damage(files)
    before = [file.read_bytes() for file in files]
    ended = run_script(script, tmp_path / "out", f"data.DATA_DIR = Path({str(tmp_path / 'data')!r})")
    refused(ended, f"{files[0]} is damaged or not the original file of MNIST")
    assert [file.read_bytes() for file in files] == before


@pytest.mark.skipif(os.name == "nt", reason="permissions work otherwise there")
def test_folders_without_permission(tmp_path, monkeypatch):
    shutil.copytree(Path(data.DATA_DIR) / "MNIST", tmp_path / "data" / "MNIST")
    (tmp_path / "out").mkdir()
    for folder in (tmp_path / "data" / "MNIST" / "raw", tmp_path / "out"):
        folder.chmod(0)
    monkeypatch.setattr(data, "DATA_DIR", tmp_path / "data")
    user = os.geteuid()
    try:
        if user == 0:  # permissions do not bind the superuser
            os.seteuid(65534)
        with pytest.raises(SystemExit, match="cannot be read or written: Permission denied"):
            data.load(train=True)
        with pytest.raises(SystemExit, match="out cannot be written: Permission denied"):
            runs.start(tmp_path / "out", {})
    finally:
        os.seteuid(user)
        for folder in (tmp_path / "data" / "MNIST" / "raw", tmp_path / "out"):
            folder.chmod(0o755)


@pytest.mark.skipif(os.name == "nt", reason="needs a limit on the size of files")
@pytest.mark.parametrize("script", ["vae_joint", "cyclegan_colors"])
def test_a_full_disk_while_a_checkpoint_is_written(script, tmp_path):
    """The system refuses files above 100 KB, as a full disk does: what was there stays whole."""
    (tmp_path / "metrics.json").write_text("old")
    limit = """
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    """
    ended = run_script(script, tmp_path, limit)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert "checkpoint.pt could not be written (File too large); what was there is unchanged." in ended.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.json", ".lock"}
    assert (tmp_path / "metrics.json").read_text() == "old"


@pytest.mark.skipif(os.name == "nt", reason="needs a limit on the size of files")
@pytest.mark.parametrize(
    ("script", "name"),
    [("vae_joint", "color_wheel.png"), ("vae_joint", "metrics.json"), ("cyclegan_colors", "training.gif")],
)
def test_a_full_disk_while_a_result_is_written(script, name, tmp_path):
    """From the moment this file is begun the system refuses files above 100 bytes: the old one stays whole."""
    (tmp_path / name).write_text("old")
    limit = f"""
        import contextlib, resource, runs, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        atomic_write = runs.atomic_write
        @contextlib.contextmanager
        def until_full(path):
            with atomic_write(path) as temporary:
                if path.name == {name!r}:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
                yield temporary
        runs.atomic_write = until_full
    """
    ended = run_script(script, tmp_path, limit)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr, ended.stderr
    assert f"{name} could not be written (File too large); what was there is unchanged." in ended.stderr
    assert (tmp_path / name).read_text() == "old" and not list(tmp_path.glob("*.tmp*"))


def test_a_truncated_judge_is_refused_before_training(tmp_path):
    path = tmp_path / "judge" / "MNIST" / "judge.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes((judge.OUTPUT_DIR / "MNIST" / "judge.pt").read_bytes()[:-1000])
    before = path.read_bytes()
    ended = run_script("vae_joint", tmp_path / "out", f"judge.OUTPUT_DIR = Path({str(tmp_path / 'judge')!r})")
    refused(ended, "judge.pt is damaged or was not written by this project: delete it and run again.")
    assert path.read_bytes() == before


@pytest.mark.parametrize("weights", [{"weight": torch.zeros(2, 2)}, [1, 2]])
def test_weights_of_another_network_are_not_taken_for_a_judge(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(judge, "OUTPUT_DIR", tmp_path)
    runs.save_torch(tmp_path / "MNIST" / "judge.pt", weights)
    with pytest.raises(SystemExit, match=r"judge\.pt does not hold the weights of a judge"):
        judge.load(torch.device("cpu"))


def test_a_checkpoint_of_another_script_is_refused(tmp_path):
    with runs.start(tmp_path, vars(vae_joint) | {"EPOCHS": 2, "DEVICE": "cpu"}) as run:
        run.resume(model=torch.nn.Linear(2, 2), optimizer=torch.nn.Linear(2, 2))
        run.checkpoint([{"epoch": 1, "seconds": 1.0}])
    before = (tmp_path / "checkpoint.pt").read_bytes()
    refused(run_script("vae_joint", tmp_path), "checkpoint.pt is not a checkpoint of this script: delete it and run")
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_ctrl_c_says_what_is_saved(tmp_path):
    interrupt = """
        import runs
        save = runs.Run.checkpoint
        def save_and_stop(*args):
            save(*args)
            raise KeyboardInterrupt
        runs.Run.checkpoint = save_and_stop
    """
    ended = run_script("cyclegan_colors", tmp_path, interrupt)
    assert ended.returncode == 130 and ended.stderr == "\nStopped: the last whole epoch is saved, run again to go on.\n"
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", ".lock"}


def test_a_log_that_nobody_reads_to_its_end(tmp_path):
    """As in `python vae_joint.py | head -5`, redirected in an encoding with few letters."""
    code = "\n".join([textwrap.dedent(SETTINGS).format(script="cyclegan_colors"), "script.main()"])
    command, few = [sys.executable, "-c", code, str(tmp_path)], os.environ | {"PYTHONIOENCODING": "ascii"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, env=few, text=True, **pipes) as process:
        for _ in range(5):
            process.stdout.readline()
        process.stdout.close()
        assert (process.wait(), process.stderr.read()) == (0, "")
    assert (tmp_path / "metrics.json").exists() and (tmp_path / "training.gif").exists()


def test_from_a_shell_that_keeps_the_folder_out_and_names_a_foreign_window_system(tmp_path):
    settings = {"PYTHONSAFEPATH": "1", "MPLBACKEND": "module://not_here.backend"}
    command = [sys.executable, str(ROOT / "vae_joint.py"), "--help"]
    ended = subprocess.run(command, cwd=tmp_path, env=os.environ | settings, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "") and not list(tmp_path.iterdir())
    assert ended.stdout.startswith("vae_joint.py takes no arguments") and ended.stdout.count(".\n") == 1


def test_arguments_start_nothing(monkeypatch, capsys):
    shell = types.ModuleType("__main__")
    shell.__file__ = "/somewhere/vae_joint.py"
    monkeypatch.setitem(sys.modules, "__main__", shell)
    for argument, status in (("--epochs=3", 2), ("--help", 0), ("x", 2)):
        monkeypatch.setattr(sys, "argv", [shell.__file__, argument])
        try:
            runs.command(lambda: pytest.fail("started"))
            ended = 0
        except SystemExit as end:
            ended = end.code
        said = "".join(capsys.readouterr())
        assert ended == status and said.startswith("vae_joint.py takes no arguments: ") and said.count(". ") == 1
    files = [*ROOT.glob("vae_*.py"), *(ROOT / name for name in ("cyclegan_colors.py", "judge.py", "compare.py"))]
    for file in [*files, *(ROOT / "benchmarks").glob("*.py")]:
        text = file.read_text(encoding="utf-8")
        assert "__main__" not in text or text.endswith('if __name__ == "__main__":\n    runs.command(main)\n'), file


def test_a_script_pasted_into_a_notebook(few_images, tmp_path, monkeypatch, capsys):
    """Its cells have no __file__, and the arguments of the kernel."""
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    for name in ("vae_continuous", "vae_discrete", "cyclegan_colors", "judge", "compare"):
        exec((ROOT / f"{name}.py").read_text(encoding="utf-8"), {"__name__": "pasted"})
    source = (ROOT / "vae_joint.py").read_text(encoding="utf-8").replace("EPOCHS = 30", "EPOCHS = 1")
    cell = {"__name__": "__main__", "X": 3, "BETAS": 1}  # and variables of one's own
    exec(source, cell)
    assert "epoch 1/1" in capsys.readouterr().out and (tmp_path / "outputs" / "vae_joint" / "metrics.json").exists()
    del cell["BETA"]
    with pytest.raises(SystemExit, match="BETA is not defined: put it back among the constants of this script"):
        cell["main"]()
