import json

import pytest

import compare
import runs
import vae_continuous
import vae_control
import vae_joint


@pytest.fixture
def tiny(few_images, no_figures, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "OUTPUT_DIR", tmp_path / "compare")
    for script in compare.SCRIPTS.values():
        monkeypatch.setattr(script, "OUTPUT_DIR", tmp_path / script.__name__)
        monkeypatch.setattr(script, "EPOCHS", 1)
    monkeypatch.setattr(vae_control, "N_STARTS", 1)
    return tmp_path


def test_main_runs_what_is_missing_and_reads_the_rest(tiny, monkeypatch, capsys):
    monkeypatch.setattr(compare, "SEEDS", (0,))
    monkeypatch.setattr(compare, "EDITS", (("joint", {"N_VARIABLES": 2}),))
    first = compare.main()
    assert capsys.readouterr().out.count("\nRunning ") == 5
    assert {path.name for path in tiny.iterdir()} == {
        "vae_continuous",
        "vae_control",
        "vae_discrete",
        "vae_joint",
        "compare",
    }
    assert (tiny / "compare" / "comparison.png").exists()
    edited = json.loads((tiny / "compare" / "vae_joint_N_VARIABLES=2_SEED=0" / "metrics.json").read_text())
    assert edited["constants"]["N_VARIABLES"] == 2 and vae_joint.N_VARIABLES == 3
    kept = {path.parent.name for path in tiny.rglob("finished.pt")}  # tens of MB each
    assert kept == {"vae_continuous", "vae_discrete", "vae_joint"}

    monkeypatch.setattr(vae_continuous, "STEP", 0.2)  # of the figures only: the numbers are read all the same
    monkeypatch.setattr(vae_joint, "DEVICE", "auto")
    assert compare.main() == first  # reads
    assert "\nRunning " not in capsys.readouterr().out
    loss = first["joint"][0]["results"]["test_loss"]
    assert f"| joint | {loss:.1f} |" in (tiny / "compare" / "table.md").read_text()
    assert "| joint, `N_VARIABLES = 2` |" in (tiny / "compare" / "constants.md").read_text()
    summary = (tiny / "compare" / "summary.md").read_text().splitlines()
    assert len(summary) == 2 + 4 and all(line.count("|") == 1 + 6 for line in summary)  # six columns

    monkeypatch.setattr(vae_continuous, "LEARNING_RATE", 0.002)  # other constants: that one runs again
    (tiny / "vae_joint" / "model.pt").unlink()
    compare.main()
    out = capsys.readouterr().out
    assert out.count("\nRunning ") == 1 and "Running vae_continuous" in out
    assert "comparison.png is left as it is" in out


def test_spread_and_table():
    assert compare.spread([1.0, 2.0, 3.0]) == "2.0 ± 1.0" and compare.spread([4.25]) == "4.2"
    content = {"results": dict.fromkeys((key for key, _ in compare.COLUMNS.values()), 0.5)}
    lines = compare.table({"joint": [content, content]}).splitlines()
    assert len(lines) == 3 and len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| joint | 0.5 ± 0.0 |") and lines[2].endswith("| 50.0 ± 0.0 | 2 |")
    assert compare.table({"joint": [content]}, compare.COLUMNS | compare.KNOB_COLUMNS).endswith(
        "| 50.0 | – | – | 1 |\n"
    )


def test_impossible_seeds_are_refused(monkeypatch):
    for seeds in ((), [0], (0.5,), (-1,)):
        monkeypatch.setattr(compare, "SEEDS", seeds)
        with pytest.raises(SystemExit, match="SEEDS is"):
            compare.main()
    monkeypatch.setattr(compare, "SEEDS", (0,))
    for edit in (("joint", {"N_VARIABLE": 2}), ("both", {})):
        monkeypatch.setattr(compare, "EDITS", (edit,))
        with pytest.raises(SystemExit, match="EDITS"):
            compare.main()


def test_a_damaged_result_is_named(tiny, monkeypatch):
    monkeypatch.setattr(compare, "SEEDS", (0,))
    path = tiny / "vae_continuous" / "metrics.json"
    path.parent.mkdir()
    now = json.dumps({"constants": runs.constants(vars(vae_continuous)), "results": {"test_loss": 1.0}})
    for content in (b"", b'{"constants": {"DATASET"', b"[]", b"\xff", now.encode()):
        path.write_bytes(content)
        with pytest.raises(SystemExit, match=r"metrics\.json is damaged or of another version of the code") as refusal:
            compare.main()
        assert str(path) in refusal.value.code and refusal.value.code.endswith(": delete it and run again.")
        assert path.read_bytes() == content
    monkeypatch.setattr(vae_joint, "OUTPUT_DIR", str(tiny))
    with pytest.raises(SystemExit, match=r"OUTPUT_DIR is '.*': it must be a Path"):
        compare.main()
