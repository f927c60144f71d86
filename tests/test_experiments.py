"""The experiments: what is run, what is read, and where it is kept."""

import json

import pytest
import torch

import cyclegan_colors
import data
import vae_continuous
import vae_joint
import vae_knobs
from experiments import common, ends, fashion, first_bias, ingredients, pairs, translation, vaes


@pytest.fixture
def tiny(few_images, no_figures, tmp_path, monkeypatch):
    """Runs of one epoch with few images, kept in a temporary folder."""
    monkeypatch.setattr(common, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(common, "TABLES", tmp_path / "tables")
    monkeypatch.setattr(vaes, "PICTURES", tmp_path)
    for script in (*vaes.SCRIPTS.values(), cyclegan_colors):
        monkeypatch.setattr(script, "OUTPUT_DIR", tmp_path / script.__name__)
        monkeypatch.setattr(script, "EPOCHS", 1)
    monkeypatch.setattr(vae_knobs, "WARM_UP_EPOCHS", (1, 0))
    return tmp_path


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_what_is_missing_is_run_and_the_rest_read(tiny, monkeypatch, capsys):
    rows = {
        "joint": (vae_joint, common.seeds({}, 0, 1)),
        "joint, `BETA = 2`": (vae_joint, common.seeds({"BETA": 2.0}, 0)),
    }
    first = common.collect("vaes", rows)
    assert capsys.readouterr().out.count("\nRunning ") == 3
    kept = {path.relative_to(tiny).as_posix() for path in tiny.rglob("*.json")}
    assert kept == {"vae_joint/metrics.json", "runs/vaes/joint/1.json", "runs/vaes/joint_BETA=2/0.json"}
    assert read(tiny / "runs/vaes/joint_BETA=2/0.json")["constants"]["BETA"] == 2.0 and vae_joint.BETA == 1.0
    assert (tiny / "runs/vaes/joint/1/model.pt").exists()  # beside it

    monkeypatch.setattr(vae_joint, "DEVICE", "auto")  # changes no result
    assert common.collect("vaes", rows) == first
    monkeypatch.setattr(data, "VALUE", (0.5, 1.0))
    found, again = (common.collect("vaes", rows, ["joint_BETA=2"]) for _ in range(2))  # what is named is run
    out = capsys.readouterr().out
    assert out.count("\nRunning ") == 2 and out.endswith("Without results, and left out of the tables: joint.\n")
    assert [*found] == [*again] == ["joint, `BETA = 2`"] and [*found.values()] != [*first.values()][1:]


def test_rows_made_with_other_code_are_named(tiny):
    rows = {name: (script, common.seeds({}, 0)) for name, script in vaes.SCRIPTS.items() if name != "discrete"}
    common.collect("vaes", rows)
    common.write("a.md", "table\n", common.collect("vaes", rows))
    assert (tiny / "tables/a.md").read_text() == "table\n"
    for name, code in (("vae_joint", {"fingerprint": "other"}), ("vae_knobs", None)):
        path = tiny / name / "metrics.json"
        path.write_text(json.dumps(read(path) | {"code": code}))
    common.write("a.md", "table\n", common.collect("vaes", rows))
    assert (tiny / "tables/a.md").read_text().endswith("before the code was recorded: joint; knobs.\n")


def test_the_vaes_in_tables_and_a_picture(tiny, monkeypatch, capsys):
    rows = {row: (script, {0: edits[0]}) for row, (script, edits) in vaes.ROWS.items()}
    monkeypatch.setattr(vaes, "ROWS", rows)
    vaes.main("continuous", "joint", "joint_N_VARIABLES=30_N_CATEGORIES=10")
    assert "is left as it is: there are no weights" in capsys.readouterr().out
    tables = {path.name: path.read_text(encoding="utf-8").splitlines() for path in (tiny / "tables").iterdir()}
    names = [
        line.split(" |")[0] for file in ("vaes.md", "vaes_summary.md", "constants.md") for line in tables[file][2:]
    ]
    edited = ["| continuous, default constants", "| joint, default constants", f"| {list(vaes.EDITED)[4]}"]
    assert names == ["| continuous", "| joint"] * 2 + edited
    loss = read(tiny / "vae_joint/metrics.json")["results"]["test_loss"]
    assert tables["vaes.md"][3].startswith(f"| joint | {loss:.1f} |")
    vaes.main("discrete", "knobs")
    assert (tiny / "comparison.png").exists() and (tiny / "swaps.png").exists()


def test_information_and_its_gap(monkeypatch):
    monkeypatch.setattr(vaes, "factor_entropies", lambda: {"digit": 2.0, "hue": 2.5})
    z, v = {"mi_digit": 0.25, "mi_hue": 1.0}, {"mi_digit": 1.25, "mi_hue": 0.5}
    expected = {"digit_best": 1.25, "digit_second": 0.25, "hue_best": 1.0, "hue_second": 1.0, "mig": 0.25}
    results = {"color_latents": ["z1", "z2"], "latents": {"z1": z, "z2": z, "v1": v}}
    assert vaes.information(results) == expected
    wheel = {"angle_mi_digit": 0.25, "angle_mi_hue": 2.0}  # one latent now
    assert vaes.information(results | wheel) == expected | {"hue_best": 2.0, "hue_second": 0.5, "mig": 0.55}
    assert vaes.information(results | wheel | {"color_latents": ["z1"]}) == expected


def test_a_damaged_result_is_named_and_kept(tiny):
    path = tiny / "vae_continuous/metrics.json"
    path.parent.mkdir()
    path.write_text('{"constants": {"DATASET"')
    with pytest.raises(SystemExit, match=r"metrics\.json is missing or damaged"):
        common.collect("vaes", {"continuous": vaes.ROWS["continuous"]})
    assert path.read_text() == '{"constants": {"DATASET"'


def test_spread_and_markdown():
    assert common.spread([1.0, 2.0, 3.0]) == "2.0 ± 1.0" and common.spread([0.0425], 100) == "4.2"
    assert common.spread([1.0, None]) == "–"
    assert common.markdown([["", "a", "b"], ["x", "1"]]) == "|  | a | b |\n| --- | ---: | ---: |\n| x | 1 | – |\n"


def test_every_row_has_a_folder_of_its_own():
    for experiment in (vaes, ingredients, translation, fashion, first_bias):
        slugs = [common.slug(row) for row in experiment.ROWS]
        assert len(set(slugs)) == len(slugs) and not set("".join(slugs)) & set(" `'/\\,;&|<>*?")


# ---------------------------------------------------------------------------------- the translation


def results(exact=1.0, digit=0.99, by_digit=0.99, psnr=38.0):
    scores = {"exact": exact, "color": 1.0, "digit": digit, "psnr": psnr, "by_color_alone": 0.9}
    scores |= {"exact_by_digit": [1.0] * 10, "color_by_digit": [1.0] * 10, "digit_by_digit": [1.0] * 9 + [by_digit]}
    ideal = scores | {"digit": 0.99}
    parts = {"": scores, "identity_": ideal, "oracle_": ideal | {"psnr": None}}
    ways = [(prefix + way, part) for prefix, part in parts.items() for way in translation.DIRECTIONS]
    return {f"{way}_{key}": value for way, part in ways for key, value in part.items()} | {"updates_to_99": 500}


def test_what_passes():
    assert translation.passes(results())
    for worse in ({"exact": 0.994}, {"digit": 0.984}, {"by_digit": 0.979}, {"psnr": 36.9}):
        assert not translation.passes(results(**worse))
    assert translation.lowest(results(by_digit=0.5), "b_to_a") == 0.5


def test_colours_drawn_at_random():
    for seed in range(3):
        drawn = translation.drawn(seed)
        a, b = (data.palette(name, drawn[name]) for name in ("DOMAIN_A", "DOMAIN_B"))
        assert (torch.cdist(a, a) + 9 * torch.eye(10)).min() > 0.34 and a.amax(1).min() > 0.39
        assert sorted(map(tuple, a.tolist())) == sorted(map(tuple, b.tolist())) and (a != b).any(1).all()


def test_the_table_of_the_translation():
    first = {"step": 0, "a_to_b_colors": [0, 1], "b_to_a_colors": [1, 0]}
    history = [first, first | {"step": 500, "seconds": 30}, first | {"step": 1500, "a_to_b_colors": [2, 1]}]
    content = {"results": results(), "history": history, "seconds": 90}
    late = {**content, "results": results(exact=0.5) | {"updates_to_99": None}}
    rows = {"fast": [content, content], "late": [content, late]}
    scores, times = (table.splitlines() for table in translation.tables(rows).split("\n\n"))
    assert scores[2].startswith("| the image as it is | 100.0 |") and len(scores) == 6 and len(times) == 4
    assert scores[4] == "| fast | 100.0 ± 0.0 | 100.0 ± 0.0 | 90.0 ± 0.0 | 99.0 ± 0.0 | 38.0 ± 0.0 | 99.0 |"
    assert times[2] == "| fast | 2 of 2 | 1,500 | 500 (0.5 min) | 1 | 1.5 |"
    assert scores[5].startswith("| late | 75.0 ± 35.4 |") and times[3] == "| late | 1 of 2 | 1,500 | – | 1 | 1.5 |"
    content["results"]["a_to_b_color"] = 0.25
    assert translation.summary(rows).endswith("| late | 75.0 ± 35.4 | 62.5 ± 53.0 | 1 of 2 | 1.5 |\n")


def test_the_translation_runs_with_edits_and_on_pairs(tiny, monkeypatch, capsys):
    edits = {"BATCH_SIZE": 100} | translation.complements()
    rows = {name: translation.ROWS[name] for name in ("default constants", "trained on true pairs")}
    rows["default constants"] = (cyclegan_colors, common.seeds({}, 0))
    monkeypatch.setattr(translation, "ROWS", rows | {"palettes": (cyclegan_colors, {7: edits})})
    for name, value in {"EPOCHS": 1, "IMAGES_PER_EPOCH": 2000, "BATCH_SIZE": 10}.items():
        monkeypatch.setattr(pairs, name, value)
    translation.main()
    assert capsys.readouterr().out.count("\nRunning ") == 3
    written = read(tiny / "runs/translation/palettes/7.json")["constants"]
    assert written["DOMAIN_B"][0] == "#00ffff" and written["BATCH_SIZE"] == 100
    assert data.DOMAIN_B[0] == "darkorange" and cyclegan_colors.BATCH_SIZE == 24
    content = read(tiny / "runs/translation/trained-on-true-pairs/0.json")
    for way in translation.DIRECTIONS:  # a few updates: nearer than the image
        assert content["results"][f"{way}_psnr"] > content["results"][f"identity_{way}_psnr"] + 3
    assert content["history"][-1]["step"] == 200 and content["code"]["fingerprint"]
    translation.main()
    assert "\nRunning " not in capsys.readouterr().out
    assert "| trained on true pairs |" in (tiny / "tables/translation.md").read_text(encoding="utf-8")


# --------------------------------------------------------------------------------------- the others


def test_fashion_by_class():
    content = {"results": results(exact=0.5) | {"test_loss": 250.0}}
    blocks = fashion.tables({"joint": [content], "translation": [content]}).split("\n\n")
    assert [len(block.splitlines()) for block in blocks] == [3, 2, 13] and "| joint | 250.0 |" in blocks[0]
    assert "\n| Ankle boot | 100.0 | 100.0 | 100.0 | 99.0 | 99.0 |\n| all | 50.0 | 50.0 |" in blocks[2]
    assert data.DATASET == "MNIST" and "class kept, %" in fashion.COLUMNS


def test_the_ingredients_and_the_ends_of_the_scale(tiny, monkeypatch):
    same = {"known_copies": ingredients.in_the_same_hue}
    rows = {ingredients.ALL: (vae_knobs, common.seeds({}, 0, 1)), "same hue": (vae_knobs, common.seeds(same, 0))}
    monkeypatch.setattr(ingredients, "ROWS", rows)
    ingredients.main()
    lines = (tiny / "tables/ingredients.md").read_text(encoding="utf-8").splitlines()
    assert ["2 seeds," in lines[2], "1 seeds," in lines[3], len(lines)] == [True, True, 4]
    assert vae_knobs.known_copies is ingredients.known_copies

    monkeypatch.setattr(ends, "EPOCHS", 3)
    found = common.collect("vaes", {row: vaes.ROWS[row] for row in vaes.ENDS})
    for contents in found.values():
        assert contents[0]["results"]["digit_accuracy"] > 0.2  # of 300 images, from 400


def test_copies_in_the_same_hue(test_set):
    index, bounds = torch.tensor([5, 9, 2]), torch.zeros(3)
    copies, *_ = ingredients.in_the_same_hue(test_set, index, bounds=bounds, deform=lambda x, elastic: x, elastic=0)
    assert torch.allclose(copies, test_set.colored(index), atol=1e-5)


def test_k_means_finds_three_heaps():
    torch.manual_seed(0)
    x = torch.randn(300, 2) * 0.1 + torch.tensor([[0.0, 0], [9, 0], [0, 9]]).repeat(100, 1)
    centres, error = min((ends.k_means(x, 3) for _ in range(10)), key=lambda found: found[1])
    assert error < 0.05 and centres.amax().item() == pytest.approx(9, abs=0.1)


def test_the_first_epochs_with_both_kinds_of_biases(tiny, monkeypatch):
    rows = {row: (vae_continuous, common.seeds({"SEED": 20}, 20)) for row in list(first_bias.ROWS)[:2]}
    monkeypatch.setattr(first_bias, "ROWS", rows)
    first_bias.main()
    own, grey = (tiny / "tables/first_bias.md").read_text().splitlines()[2:]
    assert float(grey.split("|")[2]) < 700 < float(own.split("|")[2])  # after four steps
