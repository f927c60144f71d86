"""The committed results: made with the scripts' constants, as good as promised, and quoted unedited in all texts."""

import json
import math
import re
import statistics
import subprocess
from pathlib import Path

import pytest

import compare
import cyclegan_colors
import data
import runs
from benchmarks import control, fashion, translation

ROOT = Path(runs.__file__).parent
COMPARE = ROOT / "outputs" / "compare"
README, RESULTS, SCORES = ROOT / "README.md", ROOT / "docs" / "results.md", ROOT / "docs" / "scores.md"
TEXTS = (README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
BARS = {  # means over the seeds: (on demand both, by swap both, digit kept), and the highest mean test loss
    "continuous": ((0.70, 0.02, 0.56), 277),
    "discrete": ((0.92, 0.25, 0.80), 240),
    "joint": ((0.995, 0.875, 0.89), 217.5),
    "control": ((0.995, 0.97, 0.97), 216),
}


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def committed():
    """Skips where outputs/ is not what was committed: after a run of one's own, texts and results need not agree."""
    try:
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "outputs"], cwd=ROOT, capture_output=True)
    except FileNotFoundError:  # no git: nothing can be said
        return
    if changed.returncode == 1:
        pytest.skip("outputs/ differs from the commit; `git checkout outputs` brings the committed results back")


@pytest.fixture(scope="module")
def contents(committed):
    return {
        name: [json.loads(read(compare.folder_of(script, seed, {}) / "metrics.json")) for seed in compare.SEEDS]
        for name, script in compare.SCRIPTS.items()
    }


@pytest.fixture(scope="module")
def results(contents):
    return {name: [content["results"] for content in contents[name]] for name in contents}


def spread(results, key, factor=100):
    return compare.spread([factor * r[key] for r in results])


def test_they_were_made_with_the_scripts_constants(contents):
    for name, script in compare.SCRIPTS.items():
        for seed, content in zip(compare.SEEDS, contents[name], strict=True):
            now = json.loads(json.dumps(runs.constants(vars(script)) | {"SEED": seed}))
            assert runs.first_difference(content["constants"], now) is None


def test_movies_are_small_enough_for_a_page(committed):
    sizes = [movie.stat().st_size for movie in (ROOT / "outputs").glob("*/*.gif")]
    assert len(sizes) >= len(BARS) + 1 and max(sizes) < 1_500_000  # each VAE's, and the translation's


@pytest.mark.parametrize("name", BARS)
def test_the_bars_hold(results, name):
    bars, highest_loss = BARS[name]
    for key, bar in zip(("demand_both", "swap_both", "reconstruction_digit"), bars, strict=True):
        assert statistics.mean(r[key] for r in results[name]) >= bar
    assert statistics.mean(r["test_loss"] for r in results[name]) <= highest_loss


def test_the_digit_is_a_knob_in_every_seed(results):
    for key, mean, lowest in (("digit_accuracy", 0.975, 0.96), ("knob_both", 0.985, 0.97)):
        shares = [r[key] for r in results["control"]]
        assert statistics.mean(shares) >= mean and min(shares) >= lowest


def test_the_order_of_the_losses_holds_for_each_seed(results):
    losses = {name: [r["test_loss"] for r in results[name]] for name in results}
    for joint, discrete, continuous in zip(losses["joint"], losses["discrete"], losses["continuous"], strict=True):
        assert joint < discrete < continuous


def test_the_tables_of_the_vaes_stand_unedited_in_the_texts(contents, monkeypatch):
    """And each of their runs was made with the constants of now: none would be made again."""
    for script in compare.SCRIPTS.values():
        monkeypatch.setattr(script, "main", lambda: pytest.fail("a run is missing or has other constants"))
    tables = compare.tables(contents)
    for file, place in (("summary.md", README), ("table.md", RESULTS), ("constants.md", RESULTS)):
        assert read(COMPARE / file) == tables[file] and tables[file] in read(place)
    assert read(COMPARE / "starts.md") in read(RESULTS)


def test_the_tables_of_the_translation_stand_unedited_in_the_texts(committed, monkeypatch):
    """And each of their runs was made with the constants of now: none would be made again."""
    monkeypatch.setattr(cyclegan_colors, "main", lambda: pytest.fail("a run is missing or has other constants"))
    rows = {
        name: [translation.run(name, part, edits) for part, edits in parts.items()]
        for name, parts in translation.ROWS.items()
    }
    tables = translation.tables(rows)
    for file, place in (("translation_summary.md", README), ("translation.md", RESULTS)):
        assert read(COMPARE / file) == tables[file] and tables[file] in read(place)
    default, docstring = rows["default constants"], " ".join(cyclegan_colors.__doc__.split())
    results = [content["results"] for content in default]
    palettes = ("fast, complementary colours", "fast, colours drawn at random")
    for name in ("default constants", "fast", "longer, usual beta2", *palettes, "trained on true pairs"):
        assert all(translation.passes(content["results"]) for content in rows[name]), name
    fast = [content["results"] for content in rows["fast"]]
    lowest = min(translation.lowest(result, way) for result in fast for way in translation.DIRECTIONS)
    assert f"is exact in {100 * lowest:.1f}%." in " ".join(read(RESULTS).split())
    free = [content for name in rows if "`R1_WEIGHT = 0`" in name for content in rows[name]]
    found, lost = (
        [[row[f"{way}_color"] for way in translation.DIRECTIONS] for row in at]
        for at in (
            [next(row for row in content["history"] if row["step"] == step) for content in free] for step in (500, 1500)
        )
    )
    ends = [min(content["results"][f"{way}_color"] for way in translation.DIRECTIONS) for content in free]
    words = " ".join(read(RESULTS).split())
    assert len(free) == 5 and max(ends) < 0.3
    assert f"after 500 updates {100 * min(map(min, found)):.1f} to {100 * max(map(max, found)):.1f}% of them" in words
    assert f"after 1,500 updates at most {100 * max(map(min, lost)):.1f}% are right in the worse" in words
    assert f"and at the end at most {100 * max(ends):.1f}%." in words
    lowest = min(translation.lowest(result, way) for result in results for way in translation.DIRECTIONS)
    exact, psnr = ([r[f"{way}_{key}"] for r in results for way in translation.DIRECTIONS] for key in ("exact", "psnr"))
    assert f"{100 * min(exact):.1f}% of the colours or more are exact, at {min(psnr):.1f} dB and more, and no" in words
    assert f"and no digit is below {100 * lowest:.1f}%. With 24" in words
    short, *others = [content["results"] for content in rows["24 epochs"]]
    fours = min(short["a_to_b_exact_by_digit"])
    assert len(others) == 4 and all(map(translation.passes, others)) and not translation.passes(short)
    assert fours == short["a_to_b_exact_by_digit"][4] and f"only {100 * fours:.1f}% of its 4s are exact" in words
    assert f"which 32 epochs bring to {100 * results[0]['a_to_b_exact_by_digit'][4]:.1f}%" in words
    for part in ("color", "exact", "digit"):
        for way in translation.DIRECTIONS:
            shares = [100 * content["results"][f"{way}_{part}"] for content in default]
            assert f"{compare.spread(shares)}%" in docstring
    _, _, departures = words.rpartition("Where this departs from the homework")
    black, full = (f"{value:g}".replace("-", "−") for value in cyclegan_colors.INPUT_RANGE)
    assert f"black is {black}, and full brightness {full}." in departures
    assert f"but with a weight of {cyclegan_colors.CYCLE_WEIGHT:g} (" in departures
    assert f"**{cyclegan_colors.EPOCHS} epochs** of the translation" in departures


def test_the_tables_of_the_ingredients_and_of_other_data_stand_unedited_in_the_texts(committed, monkeypatch):
    """And each of their runs was made with the constants of now: none would be made again."""
    for script in (*compare.SCRIPTS.values(), cyclegan_colors):
        monkeypatch.setattr(script, "main", lambda: pytest.fail("a run is missing or has other constants"))
    for file, table in (("control.md", control.table()), ("fashion.md", fashion.tables())):
        assert read(COMPARE / file) == table and table in read(RESULTS)
    words = " ".join(read(RESULTS).split())
    found = {seed: control.run(control.ALL, seed)["results"] for seed in control.SEEDS}
    shares = sorted(100 * r["digit_accuracy"] for r in found.values())
    assert all(r["digits_found"] == 10 for r in found.values()) and len(found) == 20
    assert f"the first variable is the digit of {shares[0]:.1f} to {shares[-1]:.1f}% of the test images." in words
    hues = {
        name: [r["latents"][name]["mi_hue"] for r in found.values()] for name in ("z1", "z2", "v1", "v2", "v3", "v4")
    }
    assert min(hues["z1"] + hues["z2"]) > 1
    highest = max(max(values) for name, values in hues.items() if name.startswith("v"))
    assert f"no variable carries more than {highest:.2f} nats" in words
    last = min(found, key=lambda seed: found[seed]["knob_both"])
    assert f"reaches {100 * found[last]['knob_both']:.1f}% only (seed {last})" in words
    rows = [
        [control.run(row, seed)["results"] for seed in control.SEEDS[:2]] for row in ("without the votes", control.ALL)
    ]
    in_nine = [[r["category_counts"][r["category_digits"].index(9)][7] for r in row] for row in rows]
    assert "Without the votes {} and {} of the 1,028".format(*in_nine[0]) in words
    assert "with them {} and {}".format(*in_nine[1]) in words
    first = fashion.vae("control")["results"]
    assert set(first["category_digits"]) == set(range(10)) - {4, 5}
    coats, sandals = ([0] * 10 for _ in range(2))  # by the class that their category is named after
    for name, counts in zip(first["category_digits"], first["category_counts"], strict=True):
        coats[name], sandals[name] = coats[name] + counts[4], sandals[name] + counts[5]
    assert coats[2] + coats[6] > 0.7 * sum(coats) and sandals[7] + sandals[9] > 0.95 * sum(sandals)
    assert f"It is the class of {100 * first['digit_accuracy']:.1f}% of the test images" in words
    clothes, light, hues = (fashion.colors(name)["results"] for name in fashion.TRANSLATIONS)
    assert f"The classifier itself reads {100 * clothes['oracle_a_to_b_digit']:.1f}% right" in words
    both = "{:.1f} and {:.1f}%".format
    right, exact, before, ten = (
        both(*(100 * r[f"{way}_{part}"] for way in translation.DIRECTIONS))
        for r, part in ((clothes, "color"), (clothes, "exact"), (light, "exact"), (hues, "exact"))
    )
    assert f"{right} of the colours are right, and {exact} exact." in words and f"There {ten} are exact" in words
    assert f"but only {before} of the colours were exact." in words
    worn = [color in ("teal", "cyan", "purple", "magenta") for color in data.DOMAIN_A]
    exact = list(zip(worn, clothes["a_to_b_exact_by_digit"], strict=True))
    low, high = max(share for one, share in exact if one), min(share for one, share in exact if not one)
    assert f"exact in {100 * low:.1f}% at most from A to B, the other six in {100 * high:.1f}% at least" in words
    lowest = sorted(map(min, hues["a_to_b_exact_by_digit"], hues["b_to_a_exact_by_digit"]))
    assert f"nine of ten classes in {100 * lowest[1]:.1f}% at least in both directions" in words
    assert (
        f"the sandals in {100 * lowest[0]:.1f}% from B to A" in words and lowest[0] == hues["b_to_a_exact_by_digit"][5]
    )
    assert min(hues["a_to_b_color"], hues["b_to_a_color"]) > 0.9995


@pytest.mark.parametrize("name", BARS)
def test_the_docstrings_have_the_results(results, name):
    docstring = " ".join(compare.SCRIPTS[name].__doc__.split())
    assert f"test loss {spread(results[name], 'test_loss', 1)} nats" in docstring
    assert f"on demand {spread(results[name], 'demand_both')}%" in docstring
    assert f"by swap {spread(results[name], 'swap_both')}%" in docstring


# ----------------------------------------------------------------------------------------------------- the texts


def test_the_readme_is_short():
    assert len(read(README).split()) < 2000


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.name)
def test_links_and_pictures_lead_somewhere(text):
    targets = re.findall(r"\]\(([^)]+)\)", read(text))
    assert targets or text not in (README, RESULTS)
    for target in targets:
        path, _, anchor = target.partition("#")
        file = text.parent / path if path else text
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", read(file), flags=re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], target


def test_the_readme_has_the_lines_of_each_file():
    rows = re.findall(r"^- `(\w+\.py)` \((\d+)", read(README), flags=re.MULTILINE)
    assert {file for file, _ in rows} == {path.name for path in ROOT.glob("*.py")}
    for file, lines in rows:
        assert int(lines) == pytest.approx(len(read(ROOT / file).splitlines()), rel=0.1)


def test_numbers_in_sentences_are_those_of_the_results(results):
    """Every number is computed here from the results, and must stand in its sentence."""
    joint, control = results["joint"][0], results["control"][0]
    rest = {name: spread(results[name][1:], "demand_both") for name in results}  # without seed 0
    lowest = {key: f"{100 * min(r[key] for r in results['control']):.1f}%" for key in ("digit_accuracy", "knob_both")}
    accuracy, knob = (f"{spread(results['control'], key)}%" for key in lowest)
    classifier = json.loads(read(ROOT / "outputs" / "judge" / "MNIST" / "metrics.json"))["results"]["judge_colored"]
    others = [v["mi_digit"] for name, v in control["latents"].items() if name.startswith("v") and name != "v1"]
    in_nine = [r["category_counts"][r["category_digits"].index(9)] for r in results["control"]]
    sevens, n_sevens = sorted(counts[7] for counts in in_nine), sum(counts[7] for counts in control["category_counts"])
    errors = {
        (digit, name): count
        for name, counts in zip(control["category_digits"], control["category_counts"], strict=True)
        for digit, count in enumerate(counts)
        if digit != name
    }
    assert max(errors, key=errors.get) == (4, 9)
    discrete = {
        key: "{:.1f} to {:.1f}%".format(*(100 * end(r[key] for r in results["discrete"]) for end in (min, max)))
        for key in ("swap_both", "demand_both")
    }
    folders = [compare.folder_of(compare.SCRIPTS[name], compare.SEEDS[0], edits) for name, edits in compare.EDITS]
    eight, _, last, short, thirty, _ = (json.loads(read(folder / "metrics.json"))["results"] for folder in folders)
    sentences = {
        README: [
            f"(joint): loss {thirty['test_loss']:.1f}, by swap {100 * thirty['swap_both']:.1f}%",
            f"(continuous): on demand {100 * eight['demand_both']:.1f}%, by swap {100 * eight['swap_both']:.1f}%",
            f"a third of the time, by swap {100 * short['swap_both']:.1f}%",
            f"go below {joint['pixel_entropy']:.1f} nats",
            f"reads {100 * classifier:.1f}% of the test digits right",
            f"carries {joint['angle_mi_hue']:.2f} of the {math.log(12):.2f} nats",
            f"and {joint['angle_mi_digit']:.2f} nats of the digit",
            f"of {accuracy} of the test images (lowest seed {lowest['digit_accuracy']})",
            "the means are " + ", ".join(f"{name} {value}%" for name, value in rest.items()),
        ],
        RESULTS: [
            f"of the {math.log(12):.2f} nats that it takes to know the hue to a twelfth of the wheel it carries "
            f"{joint['angle_mi_hue']:.2f}, and of the digit {joint['angle_mi_digit']:.2f}",
            f"correlation with the ink {joint['radius_ink_correlation']:.2f}",
            f"both right in {rest['joint']}% of the pictures of seeds 1 to 4",
            f"By swap its seeds reach {discrete['swap_both']}, on demand {discrete['demand_both']}",
            f"their average: {last['test_loss'] - joint['test_loss']:.1f} nats more, "
            f"and {100 * (joint['swap_both'] - last['swap_both']):.1f} points less by swap",
            f"of {accuracy} of the test images (lowest seed {lowest['digit_accuracy']})",
            f"both in {knob} of the pictures (lowest seed {lowest['knob_both']})",
            f"the first variable carries {control['latents']['v1']['mi_digit']:.2f} of the {math.log(10):.2f} nats",
            f"the other variables {min(others):.2f} to {max(others):.2f}",
            f"The largest group of errors are {errors[4, 9]} 4s in the category of the 9",
            f"In the five seeds {sevens[0]} to {sevens[-1]} of the {n_sevens:,} "
            "test images of a 7 are in the category of the 9",
        ],
        SCORES: [
            f"minus {joint['pixel_entropy']:.1f} nats",
            f"reads {100 * classifier:.1f}% of the test digits right",
            ", ".join(f"{name} {value}%" for name, value in rest.items()),
        ],
    }
    for text, parts in sentences.items():
        words = " ".join(read(text).split())
        assert not [part for part in parts if part not in words]
