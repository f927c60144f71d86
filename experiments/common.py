"""What the experiments share: scripts run with edited constants, kept results, Markdown tables.

A result is kept in outputs/runs/<experiment>/<row>/<seed>.json; that of a script's default
constants and seed is its own, outputs/<script>/metrics.json. The script is run where no result with
these constants is kept, and for rows that are named. What was made with other code is read all the
same, and named below the table.
"""

import contextlib
import functools
import json
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from unittest import mock

import data
import runs

RUNS, TABLES = runs.ROOT / "outputs" / "runs", runs.ROOT / "outputs" / "tables"
COLUMNS = {  # of the VAEs: heading → (key in the results, factor)
    "test loss": ("test_loss", 1),
    "test loss, one-hot": ("test_loss_hard", 1),
    "digit kept, %": ("reconstruction_digit", 100),
    "hue kept, %": ("reconstruction_hue", 100),
    "on demand, both %": ("demand_both", 100),
    "by swap, both %": ("swap_both", 100),
}
KNOB_COLUMNS = {  # of vae_knobs.py: heading → (key in the results, factor, decimals)
    "digit accuracy, %": ("digit_accuracy", 100, 2),
    "knob, both %": ("knob_both", 100, 2),
    "slant error, °": ("knob_slant_error", 1, 2),
    "width error, %": ("knob_width_error", 1, 2),
    "weight error, pixels": ("knob_weight_error", 1, 3),
    "drawings read, %": ("drawings_digit", 100, 1),
}

fingerprint = functools.cache(runs.fingerprint)

# ------------------------------------------------------------------------------------ runs


@contextlib.contextmanager
def edited(script: ModuleType, **edits) -> Iterator[None]:
    """In this context names of a script, or else of data.py, have other values."""
    with contextlib.ExitStack() as stack:
        for name, value in edits.items():
            stack.enter_context(mock.patch.object(script if hasattr(script, name) else data, name, value))
        yield


def seeds(edits: dict, *numbers: int) -> dict[int, dict]:
    """The runs of a row that differ in their seed: seed → edits."""
    return {number: edits | {"SEED": number} for number in numbers}


def slug(row: str) -> str:
    """A row's name as a folder and as an argument: "joint, `EPOCHS = 10`" → joint_EPOCHS=10."""
    for old, new in (("`", ""), ("'", ""), (" = ", "="), (", ", "_"), (" ", "-")):
        row = row.replace(old, new)
    return row


def path_of(experiment: str, row: str, number: int, script: ModuleType, edits: dict) -> Path:
    """Where the result of a run is kept."""
    if edits == {"SEED": getattr(script, "SEED", None)}:
        return script.OUTPUT_DIR / "metrics.json"
    return RUNS / experiment / slug(row) / f"{number}.json"


def has_constants(content: dict, script: ModuleType) -> bool:
    """Whether a result has the constants that script and data.py have now; it may have others."""
    of_data = tuple(name for name in content["constants"] if hasattr(data, name))
    now = json.loads(json.dumps(runs.constants(vars(script), of_data)))
    return runs.first_difference({k: v for k, v in content["constants"].items() if k in now}, now) is None


def run(path: Path, script: ModuleType, edits: dict, make: bool = True, again: bool = False) -> dict | None:
    """The result kept at `path` if it has these constants; else that of a run if `make`, or None.

    `again`: that of a run in any case. A run's checkpoint, weights and figures lie in a folder
    beside the file.
    """
    folder = path.parent if path.name == "metrics.json" else path.with_suffix("")
    with edited(script, OUTPUT_DIR=folder, **edits):
        if again or not (path.exists() and has_constants(runs.load_results(path), script)):
            if not make:
                return None
            print(f"\nRunning {script.__name__} into {folder}.\n")
            script.main()
            (folder / "metrics.json").replace(path)
    content = runs.load_results(path)
    code = content.get("code") or {}
    return content | {"same_code": code.get("fingerprint") == fingerprint(Path(script.__file__))}


def collect(
    experiment: str, rows: dict[str, tuple[ModuleType, dict[int, dict]]], names: Iterable[str] = ()
) -> dict[str, list[dict]]:
    """Row → the results of its runs. Makes the missing ones, or all of the rows with these slugs.

    `rows`: name → (script, number of a run → edits).
    """
    found = {}
    for row, (script, edits_of) in rows.items():
        named = slug(row) in names
        runs_of = [
            run(path_of(experiment, row, number, script, edits), script, edits, named or not names, named)
            for number, edits in edits_of.items()
        ]
        found[row] = [content for content in runs_of if content]
    if missing := [row for row, contents in found.items() if not contents]:
        print(f"Without results, and left out of the tables: {'; '.join(missing)}.")
    return {row: contents for row, contents in found.items() if contents}


# ---------------------------------------------------------------------------------- tables


def markdown(lines: list[list[str]]) -> str:
    """A table, the first line its heading. A short line is filled up with dashes."""
    width = len(lines[0])
    lines = [lines[0], ["---", *["---:"] * (width - 1)], *lines[1:]]
    return "".join(f"| {' | '.join([*line, *['–'] * (width - len(line))])} |\n" for line in lines)


def spread(values: list[float | None], factor: float = 1, decimals: int = 1) -> str:
    """Mean ± sample standard deviation of values × factor, or one value; a dash if one is None."""
    if None in values:
        return "–"
    values = [factor * value for value in values]
    deviation = f" ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{decimals}f}{deviation}"


def table(rows: dict[str, list[dict]], columns: dict[str, tuple]) -> str:
    """A line for each row with the spread of each column's score."""
    lines = [["", *columns]]
    for name, contents in rows.items():
        cells = [spread([c["results"].get(key) for c in contents], *form) for key, *form in columns.values()]
        lines.append([name, *cells])
    return markdown(lines)


def write(file: str, text: str, rows: dict[str, list[dict]]) -> None:
    """Saves tables and prints them, with a line that names the rows made with other code."""
    other = [name for name, contents in rows.items() if not all(content["same_code"] for content in contents)]
    if other:
        which = "all rows" if len(other) == len(rows) else "; ".join(other)
        text += f"\nMade with other code than the present, or before the code was recorded: {which}.\n"
    runs.write_text(TABLES / file, text)
    print(f"\n{text}", flush=True)
