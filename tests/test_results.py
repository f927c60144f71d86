"""The committed results: made with the scripts' constants, as promised, and quoted in all texts."""

import ast
import math
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cyclegan_colors
import data
import runs
import vae_joint
from experiments import common, fashion, ingredients, pairs, translation, vaes

ROOT = runs.ROOT
README, RESULTS, SCORES = ROOT / "README.md", ROOT / "docs" / "results.md", ROOT / "docs" / "scores.md"
TEXTS = (README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
BARS = {  # means: (on demand both, by swap both, digit kept), highest test loss
    "continuous": ((0.70, 0.02, 0.56), 277),
    "discrete": ((0.92, 0.25, 0.80), 240),
    "joint": ((0.995, 0.875, 0.89), 217.5),
    "knobs": ((0.995, 0.975, 0.97), 204),
}
PASSING = {"default constants": 5, "complementary colours": 1, "colours drawn at random": 10, "float32": 1}


def words(path: Path) -> str:
    return " ".join(path.read_text(encoding="utf-8").split())


@pytest.fixture(scope="module")
def committed():
    """Skips where outputs/ is not what was committed: after own runs, texts and results differ."""
    try:
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "outputs"], cwd=ROOT, capture_output=True)
    except FileNotFoundError:  # no git: nothing can be said
        return
    if changed.returncode == 1:
        pytest.skip("outputs/ differs from the commit; `git checkout outputs` brings the committed results back")


@pytest.fixture(scope="module")
def kept(committed):
    """Experiment → row → its kept results, made with the constants of now: none would be remade."""
    experiments = {"vaes": vaes, "ingredients": ingredients, "translation": translation, "fashion": fashion}
    with pytest.MonkeyPatch.context() as patch:
        for script in (*vaes.SCRIPTS.values(), cyclegan_colors, pairs):
            patch.setattr(script, "main", lambda: pytest.fail("a run is missing or has other constants"))
        read_only = dict.fromkeys(("ingredients", "translation", "fashion"), ("-",))  # rows may be missing
        return {name: common.collect(name, each.ROWS, read_only.get(name, ())) for name, each in experiments.items()}


@pytest.fixture(scope="module")
def results(kept):
    return {name: [content["results"] for content in kept["vaes"][name]] for name in vaes.SCRIPTS}


def spread(results, key, factor=100):
    return common.spread([r[key] for r in results], factor)


@pytest.mark.parametrize("name", BARS)
def test_the_bars_hold(results, name):
    bars, highest_loss = BARS[name]
    for key, bar in zip(("demand_both", "swap_both", "reconstruction_digit"), bars, strict=True):
        assert statistics.mean(r[key] for r in results[name]) >= bar
    assert statistics.mean(r["test_loss"] for r in results[name]) <= highest_loss


def test_the_digit_is_a_knob_and_the_order_of_the_losses_holds_in_every_seed(results):
    knobs = results["knobs"]
    assert min(r["digit_accuracy"] for r in knobs) >= 0.98 and min(r["knob_both"] for r in knobs) >= 0.99
    for knob, bar in (("slant", 2), ("width", 4), ("weight", 0.15)):
        assert max(r[f"knob_{knob}_error"] for r in knobs) <= bar
    losses = [[r["test_loss"] for r in results[name]] for name in ("joint", "discrete", "continuous")]
    assert all(joint < discrete < continuous for joint, discrete, continuous in zip(*losses, strict=True))


def test_the_joint_models_weights_have_its_test_loss(results):
    model = vae_joint.load_model(vae_joint.OUTPUT_DIR / "model.pt")
    x = data.colored_set(train=False, device=torch.device("cpu")).colored(torch.arange(0, 10_000, 10))
    loss = sum(vae_joint.elbo_terms(model, x, 0.5).values()).item() / 1000
    assert loss == pytest.approx(results["joint"][0]["test_loss"], rel=0.01)


def test_the_translation_passes_as_often_as_promised(kept):
    for row, bar in PASSING.items():
        results = [content["results"] for content in kept["translation"][row]]
        assert sum(map(translation.passes, results)) >= bar, row
        assert min(r[f"{way}_exact"] for r in results for way in translation.DIRECTIONS) >= 0.995, row
    assert not any(translation.passes(content["results"]) for content in kept["translation"][translation.SUMMARY[3]])


def test_the_tables_stand_unedited_in_the_texts(kept):
    rows = kept["translation"]
    summary = {name: rows[name] for name in translation.SUMMARY if name in rows}
    tables = {file: text for file, (text, _) in vaes.tables(kept["vaes"]).items()} | {
        "ingredients.md": ingredients.table(kept["ingredients"]),
        "translation.md": translation.tables(rows),
        "translation_summary.md": translation.summary(summary),
        "fashion.md": fashion.tables(kept["fashion"]),
    }
    assert {path.name for path in common.TABLES.iterdir()} >= {*tables, "first_bias.md"}
    for path in common.TABLES.iterdir():
        table, *_ = path.read_text(encoding="utf-8").partition("\nMade with other code")
        assert table == tables.get(path.name, table), path.name
        text = (README if "summary" in path.name else RESULTS).read_text(encoding="utf-8")
        assert all(part.strip("\n") in text for part in table.split("\n\n")), path.name


def test_the_docstrings_have_the_results(kept, results):
    for name, script in vaes.SCRIPTS.items():
        docstring = " ".join(script.__doc__.split())
        assert f"test loss {spread(results[name], 'test_loss', 1)} nats" in docstring
        assert f"on demand {spread(results[name], 'demand_both')}%" in docstring
        assert f"by swap {spread(results[name], 'swap_both')}%" in docstring
    docstring = " ".join(cyclegan_colors.__doc__.split())
    default = [content["results"] for content in kept["translation"]["default constants"]]
    for key in (f"{way}_{part}" for part in ("color", "exact", "digit") for way in translation.DIRECTIONS):
        assert f"{spread(default, key)}%" in docstring


# ---------------------------------------------------------------------------------------- the texts


def test_the_readme_is_short():
    assert sum(any(sign.isalnum() for sign in word) for word in words(README).split()) <= 1200


def test_the_readmes_snippet_runs_word_for_word(tmp_path, monkeypatch):
    snippet = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    exec(snippet, {})
    assert (tmp_path / "slanted.png").stat().st_size > 1000


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.name)
def test_links_and_pictures_lead_somewhere(text):
    for target in re.findall(r"\]\(([^)]+)\)", text.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        file = text.parent / path if path else text
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], target


def test_the_readmes_numbers_in_sentences_are_those_of_the_results(kept, results):
    joint, judge = results["joint"][0], runs.load_results(ROOT / "outputs" / "judge" / "MNIST" / "metrics.json")
    rest = {name: spread(results[name][1:], "demand_both") for name in results}  # without seed 0
    edited = {common.slug(row): contents[0]["results"] for row, contents in kept["vaes"].items()}
    eight, short = edited["continuous_LATENT_DIM=8"], edited["joint_EPOCHS=10"]
    thirty = edited["joint_N_VARIABLES=30_N_CATEGORIES=10"]
    accuracy, lowest = spread(results["knobs"], "digit_accuracy"), min(r["digit_accuracy"] for r in results["knobs"])
    sentences = [
        f"(joint): loss {thirty['test_loss']:.1f}, by swap {100 * thirty['swap_both']:.1f}%",
        f"(continuous): on demand {100 * eight['demand_both']:.1f}%, by swap {100 * eight['swap_both']:.1f}%",
        f"a third of the time, by swap {100 * short['swap_both']:.1f}%",
        f"go below {joint['pixel_entropy']:.1f} nats",
        f"reads {100 * judge['results']['judge_colored']:.1f}% of the test digits right",
        f"carries {joint['angle_mi_hue']:.2f} of the {math.log(12):.2f} nats",
        f"and {joint['angle_mi_digit']:.2f} nats of the digit",
        f"for {accuracy}% of the test images (lowest seed {100 * lowest:.1f}%)",
    ]
    assert f"is {spread(results['knobs'], 'crosstalk')} points" in words(RESULTS)
    assert "the means are " + ", ".join(f"{name} {value}%" for name, value in rest.items()) in words(SCORES)
    assert not [sentence for sentence in sentences if sentence not in words(README)]


# -------------------------------------------------------------------------------------- the imports


def imports(path: Path) -> set[str]:
    """The top-level modules that a file imports."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name.split(".")[0] for name in names | {n.module for n in nodes if isinstance(n, ast.ImportFrom)}}


ROOMS = ("experiments", "benchmarks", "page")
OWN = {path.stem for path in ROOT.glob("*.py")} | {*ROOMS}


def test_every_import_is_in_the_requirements():
    files = [*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).glob("*.py"))]
    used = set().union(*map(imports, files)) - OWN - sys.stdlib_module_names
    required = {re.match(r"[\w-]+", line)[0] for line in (ROOT / "requirements.txt").read_text().splitlines()}
    assert used - {"PIL"} == required  # torchvision requires pillow


def test_imports_point_one_way():
    shared = {
        "data": set(),
        "runs": {"data"},
        "plots": {"data", "runs"},
        "judge": {"data", "runs"},
        "metrics": {"data", "judge"},
    }
    for path in ROOT.glob("*.py"):
        allowed = shared.get(path.stem, {*shared, *["vae_joint"] * (path.stem == "vae_knobs")})
        assert imports(path) & OWN <= allowed, path.name
