import json
import os

import torch

import cyclegan_colors
import data
import metrics
import runs
import vae_continuous
import vae_control
from benchmarks import control, fashion, starts, timing, translation, vae_step

RATE = {"LEARNING_RATE": 0.002}


def results(exact=1.0, digit=0.99, by_digit=0.99, psnr=38.0):
    return {
        f"{prefix}{direction}_{key}": value
        for direction in translation.DIRECTIONS
        for prefix in ("", "identity_", "oracle_")
        for key, value in (
            ("exact", exact),
            ("color", 1.0),
            ("digit", 0.99 if prefix else digit),
            ("psnr", None if prefix == "oracle_" else psnr),
            ("exact_by_digit", [1.0] * 10),
            ("color_by_digit", [1.0] * 10),
            ("digit_by_digit", [1.0] * 9 + [by_digit]),
        )
    } | {"updates_to_99": 500}


def test_what_passes():
    assert translation.passes(results())
    assert not translation.passes(results(exact=0.994))
    assert not translation.passes(results(digit=0.984))
    assert not translation.passes(results(by_digit=0.979))
    assert not translation.passes(results(psnr=36.9))
    assert translation.lowest(results(by_digit=0.5), "b_to_a") == 0.5


def test_complementary_colours():
    a, b = data.palette("DOMAIN_A", data.DOMAIN_A), data.palette("DOMAIN_B", translation.complements()["DOMAIN_B"])
    assert torch.allclose((a + b)[:9], torch.ones(9, 3), atol=0.003) and data.DOMAIN_A[9] == "white"
    assert torch.allclose(b[9], torch.full((3,), 128 / 255))


def test_colours_drawn_at_random():
    for seed in range(3):
        drawn = translation.drawn(seed)
        assert drawn == translation.drawn(seed) != translation.drawn(seed + 10)
        a, b = (data.palette(name, drawn[name]) for name in ("DOMAIN_A", "DOMAIN_B"))
        distances = torch.cdist(a, a) + 9 * torch.eye(10)
        assert distances.min() > 0.34 and a.amax(1).min() > 0.39  # rounded to 1 / 255
        assert sorted(map(tuple, a.tolist())) == sorted(map(tuple, b.tolist())) and (a != b).any(1).all()


def test_fashion_by_class():
    lines = fashion.by_class(results(exact=0.5)).splitlines()
    assert lines[0].startswith("| class | colour exact A → B, % | colour exact B → A, % | right A → B, % |")
    assert lines[2] == "| T-shirt/top | 100.0 | 100.0 | 100.0 | 100.0 | 100.0 | 100.0 | 100.0 |"
    assert lines[11] == "| Ankle boot | 100.0 | 100.0 | 100.0 | 100.0 | 99.0 | 99.0 | 99.0 |"
    assert lines[12] == "| all | 50.0 | 50.0 | 100.0 | 100.0 | 99.0 | 99.0 | 99.0 |" and len(lines) == 13
    assert data.DATASET == "MNIST" and "by knob, both %" in fashion.COLUMNS and "class kept, %" in fashion.COLUMNS


def test_fashion_asks_for_each_script_and_writes_the_tables(tmp_path, monkeypatch):
    asked = []

    def run(script, folder, edits, *_):
        asked.append((script.__name__, folder.name, edits))
        return {"results": results() | {"test_loss": 250.0, "knob_both": 0.9}}

    monkeypatch.setattr(fashion.compare, "OUTPUT_DIR", tmp_path)
    monkeypatch.setattr(fashion.compare, "run", run)
    fashion.main()
    names = ["cyclegan_colors", "vae_continuous", "vae_discrete", "vae_joint", "vae_control"]
    folders = [f"{name}_FashionMNIST" for name in names]
    translations = [f"{folders[0]}{name}" for name in ("", "_REFINE_WEIGHT=0", "_ten-hues")]
    assert [folder for _, folder, _ in asked] == [*translations, *folders[1:]]
    assert all(folder.startswith(script) and edits["DATASET"] == "FashionMNIST" for script, folder, edits in asked)
    assert all(edits == {"DATASET": "FashionMNIST"} for *_, edits in asked[3:])  # the VAEs: the scripts' constants
    a, b = asked[2][2]["DOMAIN_A"], asked[2][2]["DOMAIN_B"]
    assert [edits["REFINE_WEIGHT"] for *_, edits in asked[:3]] == [40, 0, 40]
    assert len(set(a)) == 10 and b == a[1:] + a[:1] and a[0] == "#ff0000" and a[5] == "#00ffff"
    written = (tmp_path / "fashion.md").read_text(encoding="utf-8")
    assert "| control | 250.0 |" in written and "| Ankle boot |" in written


def test_table():
    content = {
        "results": results(),
        "history": [{"step": 0}, {"step": 500, "seconds": 30}, {"step": 1500}],
        "seconds": 90,
    }
    late = {**content, "results": results(exact=0.5) | {"updates_to_99": None}}
    lines = translation.table({"fast": [content, content], "late": [content, late]}).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[0].startswith("|  | colour exact A → B, % | colour exact B → A, % |") and "PSNR B → A, dB" in lines[0]
    ones = "| 100.0 | 100.0 | 100.0 | 100.0 | 99.0 | 99.0 |"
    assert lines[2] == f"| the image as it is {ones} 38.0 | 38.0 | – | – | – | – | – |"
    assert lines[3] == f"| the true target {ones} – | – | – | – | – | – | – |"
    assert lines[4].startswith("| the homework's published weights | – | – | 60 | 38 | – |")
    assert lines[5].endswith("| 38.0 ± 0.0 | 38.0 ± 0.0 | 2 of 2 | 1.5 | 99.0 | 1,500 | 500 (0.5 min) |")
    assert lines[6].startswith("| late | 75.0 ± 35.4 |") and lines[6].endswith("| 1 of 2 | 1.5 | 99.0 | 1,500 | – |")
    short = translation.table({"fast": [content, content]}, summary=True).splitlines()
    assert len({line.count("|") for line in short}) == 1 and short[4].endswith("| 2 of 2 | 1.5 |")


def test_main_runs_what_is_missing_and_puts_the_constants_back(few_images, no_figures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(translation.compare, "OUTPUT_DIR", tmp_path / "compare")
    monkeypatch.setattr(cyclegan_colors, "OUTPUT_DIR", tmp_path / "own")
    monkeypatch.setattr(cyclegan_colors, "EPOCHS", 1)
    monkeypatch.setattr(translation, "PAIRED", {"EPOCHS": 2, "IMAGES_PER_EPOCH": 100, "BATCH_SIZE": 10} | RATE)
    rows = {
        "default constants": translation.seeds({}, 0),
        "palettes": translation.seeds({"BATCH_SIZE": 100} | translation.complements(), 1),
        "trained on true pairs": {"paired": {}},
    }
    monkeypatch.setattr(translation, "ROWS", rows)
    colors, size = data.DOMAIN_A, cyclegan_colors.BATCH_SIZE
    translation.main()
    assert capsys.readouterr().out.count("\nRunning ") == 2
    assert colors == data.DOMAIN_A and size == cyclegan_colors.BATCH_SIZE
    written = json.loads((tmp_path / "compare" / "cyclegan_colors_palettes_SEED=1" / "metrics.json").read_text())
    assert written["constants"]["DOMAIN_B"][0] == "#00ffff" and written["constants"]["SEED"] == 1
    pairs = tmp_path / "compare" / "cyclegan_colors_paired-training" / "metrics.json"
    before = pairs.stat().st_mtime_ns
    translation.main()
    assert "\nRunning " not in capsys.readouterr().out and pairs.stat().st_mtime_ns == before
    assert "| palettes |" in (tmp_path / "compare" / "translation.md").read_text()
    assert "| trained on true pairs |" in (tmp_path / "compare" / "translation.md").read_text()


def test_paired_training_teaches_the_translation(few_images, no_figures, tmp_path, monkeypatch):
    """Pairs show the right colours, so that a few updates get nearer to them than the image as it is."""
    monkeypatch.setattr(translation.compare, "OUTPUT_DIR", tmp_path)
    monkeypatch.setattr(translation, "PAIRED", {"EPOCHS": 1, "IMAGES_PER_EPOCH": 2000, "BATCH_SIZE": 10} | RATE)
    content = translation.paired()
    for way in translation.DIRECTIONS:
        assert content["results"][f"{way}_psnr"] > content["results"][f"identity_{way}_psnr"] + 3
    assert content["history"][-1]["step"] == 200


def test_steps_are_timed_from_outside_and_everything_is_put_back(few_images):
    before = runs.Run.check_finite, data.load, vae_continuous.OUTPUT_DIR, vae_continuous.BATCH_SIZE
    stamps = timing.first_epoch(vae_continuous, images=300, BATCH_SIZE=20)
    assert len(stamps) == 15 + 1 + 1 and stamps == sorted(stamps)  # steps, test pass, checkpoint
    assert 0 < timing.step_seconds(vae_continuous, 3, images=300, BATCH_SIZE=20) < 10
    assert before == (runs.Run.check_finite, data.load, vae_continuous.OUTPUT_DIR, vae_continuous.BATCH_SIZE)


def test_apart_is_another_process_that_starts_workers_as_usual():
    assert timing.apart(os.getpid) != os.getpid()
    asked = "__import__('multiprocessing').get_start_method()"
    assert timing.apart(eval, asked) == eval(asked)


def test_rows_of_ratios(capsys):
    order = []
    functions = {"usual": lambda: order.append("usual") or 2.0, "script": lambda: order.append("script") or 0.5}
    values = timing.repeated(functions, 3)
    assert order == ["usual", "script"] * 3
    assert capsys.readouterr().out.splitlines()[:2] == ["usual (1 of 3): 2000.00 ms", "script (1 of 3): 500.00 ms"]
    assert timing.row("x", values, "usual") == "| x | 2000.0 | 500.0 | 0.25 (0.25 to 0.25) |"
    assert timing.head("", ["a", "b"]) == "|  | a | b |\n| --- | ---: | ---: |"


def test_a_measurement_is_announced_before_it_starts(capsys):
    def function():
        assert capsys.readouterr().out == "vae_joint alone (1 of 1): "
        return {"products": 0.004, "Adam": 0.001}

    assert timing.columns(timing.repeated({"alone": function}, 1, "vae_joint")["alone"])["Adam"] == [0.001]
    assert capsys.readouterr().out == "products 4.00 ms, Adam 1.00 ms\n"


def test_a_step_beside_its_floor(few_images, monkeypatch):
    monkeypatch.setattr(vae_step, "WARM_UP", 1)
    monkeypatch.setattr(vae_step, "STEPS", 2)
    for name in vae_step.MODELS:
        parts = vae_step.alone(name)
        assert list(parts)[:2] == ["products", "Adam"] and min(parts.values()) > 0
    parts = dict.fromkeys(parts, 0.001) | {"products": 0.004, "Adam": 0.002, "products at torch's default": 0.008}
    repeats = {"alone": [parts] * 3, "usual way": [{"step": 0.03, "epoch": 15.0}] * 3}
    repeats["script"] = [{"step": step, "epoch": 4.0} for step in (0.012, 0.015, 0.018)]
    text = vae_step.tables({"vae_joint": repeats})
    assert "| vae_joint | 4.0 | 2.0 | 15.0 | 2.50 (2.00 to 3.00) | 8.0 | 2.00 (2.00 to 2.00) |" in text
    assert "| cross-entropy | 1.00 |" in text and "| unexplained | 2.00 |" in text  # 15 - 4 - 2 - 7 parts of 1
    assert "| vae_joint | 4.0 | 15.0 | 3.75 (3.75 to 3.75) |" in text
    for block in text.split("\n\n"):
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_the_control_models_ingredients(few_images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(control.compare, "OUTPUT_DIR", tmp_path)
    monkeypatch.setattr(control, "SEEDS", (0, 1, 2))
    monkeypatch.setattr(control, "SHORT", {"EPOCHS": 1, "START_EPOCHS": 1, "N_STARTS": 1})
    rows = {name: control.ROWS[name] for name in (control.ALL, "copies in the same hue")}
    monkeypatch.setattr(control, "ROWS", rows)
    control.main()
    assert capsys.readouterr().out.count("\nRunning ") == 5
    first, second = (tmp_path / "control.md").read_text(encoding="utf-8").splitlines()[2:]
    assert first.startswith("| all ingredients |") and first.endswith("| 3 |")
    assert second.startswith("| copies in the same hue |") and second.endswith("| 2 |")
    names = json.loads((tmp_path / "control" / "all-ingredients_SEED=2" / "metrics.json").read_text())["results"]
    assert control.run(control.ALL, 2)["results"]["digits_found"] == len(set(names["category_digits"])) > 1
    assert not list(tmp_path.rglob("*.png"))


def test_copies_in_the_same_hue(test_set):
    index, deformed = torch.tensor([5, 9, 2]), vae_control.deformed_copies
    with control.same_hue():
        copies = vae_control.deformed_copies(test_set, index, 0.7)
    assert metrics.hue_distance(metrics.hue_of(copies), test_set.hues[index]).max() < 1
    assert vae_control.deformed_copies is deformed


def test_the_first_epochs_with_both_kinds_of_biases(few_images, monkeypatch):
    monkeypatch.setattr(starts, "EPOCHS", 1)
    rows = {("continuous", start): [starts.first_epochs(vae_continuous, start, 20)] for start in starts.STARTS}
    torchs, grey = (row["test_reconstruction"] for (row,) in rows.values())
    assert grey < 700 < torchs  # after four steps
    lines = starts.table(rows).splitlines()
    assert lines[2].startswith("| continuous | torch's own biases | ") and len(lines) == 4
    stuck = [{"test_kl": 1.0, "explained_variance": 0.01}, {"test_kl": 2.0, "explained_variance": 0.5}]
    assert starts.table({("joint", "x"): stuck}).splitlines()[2] == "| joint | x | 1.0 | 2.0 | 1 of 2 |"
