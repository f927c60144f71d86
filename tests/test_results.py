"""The committed results: made by the constants as they stand, told unedited in the README, and as good as promised."""

import json
import statistics
from pathlib import Path

import pytest

import compare
import cyclegan_colors
import runs
from benchmarks import translation

ROOT = Path(runs.__file__).parent
BARS = {  # means over the seeds: (on demand both, by swap both, digit kept), and the highest mean test loss
    "continuous": ((0.50, 0.02, 0.46), 283),
    "discrete": ((0.90, 0.24, 0.77), 247),  # on demand, single seeds reach from 0.84 to 0.96
    "joint": ((0.99, 0.86, 0.88), 222),
    "control": ((0.99, 0.96, 0.97), 217),
}


@pytest.fixture(scope="module")
def contents():
    def read(script, seed):
        return json.loads((compare.folder_of(script, seed, {}) / "metrics.json").read_text())

    return {name: [read(script, seed) for seed in compare.SEEDS[name]] for name, script in compare.SCRIPTS.items()}


def test_they_were_made_with_the_constants_as_they_stand(contents):
    for name, script in compare.SCRIPTS.items():
        for seed, content in zip(compare.SEEDS[name], contents[name], strict=True):
            now = json.loads(json.dumps(runs.constants(vars(script)) | {"SEED": seed}))
            assert runs.first_difference(content["constants"], now) is None


@pytest.mark.parametrize("name", BARS)
def test_the_bars_hold(contents, name):
    bars, highest_loss = BARS[name]
    for key, bar in zip(("demand_both", "swap_both", "reconstruction_digit"), bars, strict=True):
        assert statistics.mean(content["results"][key] for content in contents[name]) >= bar
    assert statistics.mean(content["results"]["test_loss"] for content in contents[name]) <= highest_loss


def test_the_order_of_the_losses_holds_for_each_seed(contents):
    losses = {name: [content["results"]["test_loss"] for content in contents[name]] for name in contents}
    for joint, discrete, continuous in zip(losses["joint"], losses["discrete"], losses["continuous"], strict=True):
        assert joint < discrete < continuous


def test_the_readme_tells_the_tables_unedited(contents, monkeypatch):
    """And each of their runs was made with the constants as they stand: none would be made again."""
    for script in compare.SCRIPTS.values():
        monkeypatch.setattr(script, "main", lambda: pytest.fail("a run is missing or has other constants"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for file in ("table.md", "constants.md"):
        assert (ROOT / "outputs" / "compare" / file).read_text(encoding="utf-8") in readme
    assert (ROOT / "outputs" / "compare" / "table.md").read_text(encoding="utf-8") == compare.table(
        contents, compare.COLUMNS | compare.KNOB_COLUMNS
    )
    edited = compare.table(compare.edited(contents))
    assert (ROOT / "outputs" / "compare" / "constants.md").read_text(encoding="utf-8") == edited


def test_the_readme_tells_the_table_of_the_translation_unedited(monkeypatch):
    """And each of its runs was made with the constants as they stand: none would be made again."""
    monkeypatch.setattr(cyclegan_colors, "main", lambda: pytest.fail("a run is missing or has other constants"))
    rows = {
        name: [translation.run(name, edits, seed) for seed in seeds]
        for name, (edits, seeds) in translation.ROWS.items()
    }
    table = (ROOT / "outputs" / "compare" / "translation.md").read_text(encoding="utf-8")
    assert table == translation.table(rows)
    assert table in (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(translation.passes(content["results"]) for content in rows["as it stands"])
    results, told = rows["as it stands"][0]["results"], " ".join(cyclegan_colors.__doc__.split())
    for part in ("color", "digit"):
        assert f"{100 * results[f'a_to_b_{part}']:.1f}%" in told and f"{100 * results[f'b_to_a_{part}']:.1f}%" in told


def test_every_figure_of_the_readme_is_there():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    figures = [line.split("](")[1].rstrip(")") for line in lines if line.startswith("![")]
    assert len(figures) > 8 and all((ROOT / figure).exists() for figure in figures)


@pytest.mark.parametrize("name", BARS)
def test_the_docstrings_tell_the_results(contents, name):
    results = [content["results"] for content in contents[name]]
    told = " ".join(compare.SCRIPTS[name].__doc__.split())
    assert f"test loss {compare.spread([r['test_loss'] for r in results])} nats" in told
    assert f"on demand {compare.spread([100 * r['demand_both'] for r in results])}%" in told
    assert f"by swap {compare.spread([100 * r['swap_both'] for r in results])}%" in told
