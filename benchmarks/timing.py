"""What the benchmarks share: the scripts' steps timed from outside, and tables of medians."""

import contextlib
import io
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType
from unittest import mock

import torch

import data
import judge
import runs
from experiments import common


class _EnoughError(Exception):
    pass


def first_epoch(script: ModuleType, steps: int | None = None, images: int | None = None, **constants) -> list[float]:
    """Readings of the clock, seconds, in main()'s first epoch: after each step, and at its end.

    The end is after the test pass and the checkpoint. The run is cut short there, or after `steps`.
    `images`: how many training images there are, all by default. `constants`: edits of the
    script's.
    """
    stamps, load, checkpoint = [], data.load, runs.Run.checkpoint

    def timed(batches: Iterable, *args, **options) -> Iterator:
        for batch in batches:
            yield batch
            stamps.append(time.perf_counter())
            if len(stamps) == steps:
                raise _EnoughError

    def checkpoint_and_stop(*args) -> None:
        checkpoint(*args)
        stamps.append(time.perf_counter())
        raise _EnoughError

    def load_some(train: bool) -> tuple:
        return tuple(part[: images if train else None] for part in load(train))

    judge.load(torch.device("cpu"))  # trained now, with all images, if there is none
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        common.edited(script, OUTPUT_DIR=Path(folder), tqdm=timed, load=load_some, **constants),
        mock.patch.object(runs.Run, "checkpoint", checkpoint_and_stop),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.suppress(_EnoughError),
    ):
        script.main()
    return stamps


def step_seconds(script: ModuleType, steps: int, **options) -> float:
    """The mean of so many steps, after eleven that are not counted; options as above."""
    stamps = first_epoch(script, steps + 11, **options)
    return (stamps[-1] - stamps[10]) / steps


def apart(function: Callable, *args):
    """What function(*args) returns in a new process, so that no run before affects its memory."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _start_workers_as_usual) as pool:
        return pool.submit(function, *args).result()


def _start_workers_as_usual() -> None:
    """Else a DataLoader would start its workers by spawning, with all imports."""
    multiprocessing.set_start_method(None, force=True)


def repeated(functions: dict[str, Callable], repeats: int = 5, title: str = "") -> dict[str, list]:
    """Calls the functions in turn, repeatedly, so that load slows all alike: name → their returns.

    They return seconds, or a dict of seconds by name. Prints what is running, and its result as
    soon as it is there.
    """
    values = {name: [] for name in functions}
    for i in range(repeats):
        for name, function in functions.items():
            print(" ".join(filter(None, [title, str(name)])), f"({i + 1} of {repeats}): ", end="", flush=True)
            value = function()
            parts = value if isinstance(value, dict) else {"": value}
            print(", ".join(f"{part} {1000 * s:.2f} ms".strip() for part, s in parts.items()), flush=True)
            values[name].append(value)
    return values


def columns(repeats: list[dict]) -> dict[str, list]:
    """What each repeat has by name → by name what the repeats have."""
    return {name: [repeat[name] for repeat in repeats] for name in repeats[0]}


def median(times: list[float], unit: float = 1000, digits: int = 1) -> str:
    return f"{statistics.median(times) * unit:.{digits}f}"


def ratio(times: list[float], references: list[float]) -> str:
    """The median of the repeats' own ratios, with the lowest and the highest."""
    ratios = [mine / reference for mine, reference in zip(times, references, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def row(name: str, values: dict[str, list[float]], of: str, unit: float = 1000) -> list[str]:
    """A line of a table: medians, and each one's ratio to the one called `of`, with its range."""
    cells = [name]
    for key, times in values.items():
        cells += [median(times, unit)] + [ratio(times, values[of])] * (key != of)
    return cells
