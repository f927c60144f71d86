"""Every figure: arrays in, one file out.

All share one style. Pixels are drawn as they are (nearest neighbour, values in [0, 1] unchanged).
Rows and columns are labelled with the digit, hue or latent value they stand for. Images are tensors
(..., 3, 28, 28) in [0, 1].
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.animation import PillowWriter
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Rectangle
from torch import Tensor

import data
import runs

DPI = 170  # dots per inch of the pictures; moving ones have 110
WIDTH = 7.6  # inches, of the widest: GitHub shows it 830 pixels wide, and so 9 points as 14 pixels

STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.titlesize": 11,
    "image.interpolation": "nearest",
    "legend.frameon": False,
    "savefig.bbox": "tight",
}
TERM_LABELS = {"kl_z": "continuous latents (z)", "kl_v": "categorical latents (v)"}
CELL = 0.36  # inches that an image takes in a grid, or less where WIDTH has not the room
GAP = 0.15  # grey level between images: darker than pure blue, which a lighter one would outshine


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """The style of all figures, whatever a user's matplotlib settings. A decorator: `@styled()`."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def _figure(rows: int, columns: int, width: float, height: float, **options) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(width, height), layout="constrained")  # no pyplot, no screen
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _cell(columns: int, other: float) -> float:
    """Inches of an image in a figure with so many columns and `other` inches beside them."""
    return min(CELL, (WIDTH - other) / columns)


def _save(figure: Figure, path: Path) -> None:
    with runs.atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _tiles(axes: Axes, images: Tensor, rows: list, columns: list, gap: int = 2) -> None:
    """Draws images (R, C, 3, 28, 28) as one labelled grid."""
    n_rows, n_columns, size = len(images), len(images[0]), images.shape[-1]
    axes.imshow(_canvas(images, gap))
    axes.set_xticks(np.arange(n_columns) * (size + gap) + size / 2, columns)
    if max((len(str(column)) for column in columns), default=0) > 6:  # names of classes
        axes.tick_params(axis="x", rotation=90)
    axes.set_yticks(np.arange(n_rows) * (size + gap) + size / 2, rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _canvas(images: Tensor, gap: int = 2) -> np.ndarray:
    """Images (R, C, 3, 28, 28) side by side: (height, width, 3)."""
    pixels = _array(images).transpose(0, 1, 3, 4, 2)  # (R, C, 28, 28, 3)
    n_rows, n_columns, size = pixels.shape[:3]
    pitch = size + gap
    canvas = np.full((n_rows * pitch - gap, n_columns * pitch - gap, 3), GAP)
    for r in range(n_rows):
        for c in range(n_columns):
            canvas[r * pitch : r * pitch + size, c * pitch : c * pitch + size] = pixels[r, c]
    return canvas


def _frame(axes: Axes, r: int, c: int) -> tuple[float, float]:
    """Frames the image in row r and column c of a grid. Returns the frame's upper right corner."""
    x, y = c * 30 - 1.5, r * 30 - 1.5
    axes.add_patch(Rectangle((x, y), 30, 30, fill=False, edgecolor="white", linewidth=1.2))
    return x + 30, y


def _mark(axes: Axes, cells: np.ndarray) -> None:
    """Frames the cells (R, C) that are True, with a cross in a corner: visible on any colour."""
    for r, c in np.argwhere(cells):
        x, y = _frame(axes, r, c)
        axes.text(x - 5, y + 6, "×", color="white", fontsize=9, fontweight="bold", ha="center", va="center")


@styled()
def movie(
    path: Path,
    frames: Tensor,
    titles: list[str],
    rows: list,
    columns: list,
    label: str,
    fps: int,
    dial: tuple[Tensor, Tensor, Tensor] | None = None,
    wrong: np.ndarray | None = None,
) -> None:
    """A GIF that loops: grids of images (T, R, C, 3, 28, 28) one after another, with titles.

    `label` names the columns. `dial`, drawn beside the grid: codes (n, D) of test images and their
    hues (n,) in degrees, and the P points (T, P, D) that the images of a frame are decoded from.
    `wrong`, bool (T, R, C): images that get a cross.
    """
    if dial is None:
        figure, ((axes,),) = _figure(1, 1, 0.5 * len(columns) + 1.5, 0.5 * len(rows) + 0.9)
    else:
        figure, ((left, axes),) = _figure(1, 2, 7.5, max(0.5 * len(rows) + 0.9, 2.2), width_ratios=(1.6, 4.8))
        hands = _draw_dial(left, *dial)
    _tiles(axes, frames[0], rows, columns)
    axes.set_xlabel(label)
    title = figure.suptitle(max(titles, key=len), fontsize=10)  # the widest settles the layout
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    writer = PillowWriter(fps)
    with runs.atomic_write(path) as temporary, writer.saving(figure, temporary, dpi=110):
        for t, text in enumerate(titles):
            axes.images[0].set_data(_canvas(frames[t]))
            title.set_text(text)
            for mark in [*axes.patches, *axes.texts]:
                mark.remove()
            if wrong is not None:
                _mark(axes, wrong[t])
            if dial is not None:
                for hand, (z1, z2) in zip(hands, _plane(dial[2][t]), strict=True):
                    hand.set_data([0, z1], [0, z2])
            writer.grab_frame()


def _draw_dial(axes: Axes, codes: Tensor, hues: Tensor, points: Tensor) -> list[Line2D]:
    """Codes (n, D) in their hues, circles of points (T, P, D) and a hand to each: the hands."""
    first = _plane(points[0])
    limit = max(3.5, 1.1 * np.abs(first).max())
    _scatter_by_hue(axes, _plane(codes[:1500]), _array(hues[:1500]), limit).set_alpha(0.3)
    for radius in np.hypot(*first.T):
        axes.add_patch(Circle((0, 0), radius, fill=False, edgecolor="0.6", linewidth=0.8))
    axes.set(xticks=(-2, 0, 2), yticks=(-2, 0, 2))
    hands = [
        axes.plot([0, z1], [0, z2], "o-", color="black", linewidth=1, markersize=4, markevery=[1]) for z1, z2 in first
    ]
    return [hand for (hand,) in hands]


def common_figures(folder: Path, model: str, scores: NamedTuple, history: list[dict]) -> None:
    """The five figures that all VAEs have. `model` is in titles, `scores` from metrics.evaluate."""
    results = scores.results
    loss_curves(folder / "loss.png", history, scores.floors)
    latent_usage(folder / "latent_usage.png", results, model)
    reconstructions(folder / "reconstructions.png", *scores.reconstructions, results, model)
    control_on_demand(folder / "control_on_demand.png", *scores.demand, results, model)
    control_by_swap(folder / "control_by_swap.png", *scores.swaps, results, model)


@styled()
def loss_curves(path: Path, history: list[dict], floors: dict[str, float]) -> None:
    """Each term of the loss over the epochs, nats per image: train as lines, test as dots.

    `floors`: the pixel entropy of the "train" and of the "test" images. Train values are means over
    an epoch, during which the model changes. Test values are taken at its end, with the averaged
    weights if a script averages them.
    """
    figure, ((left, right),) = _figure(1, 2, WIDTH, 2.8)
    epochs = np.arange(1, len(history) + 1)
    terms = [name.removeprefix("train_") for name in history[0] if name.startswith("train_")]
    for i, name in enumerate(terms):
        axes, floor = (left, floors) if name == "reconstruction" else (right, {"train": 0, "test": 0})
        for part, style in (("train", "-"), ("test", "o")):
            if f"{part}_{name}" in history[0]:  # a regularizer may have no test value
                values = [row[f"{part}_{name}"] - floor[part] for row in history]
                label = part if axes is left else TERM_LABELS.get(name, name) if part == "train" else None
                axes.plot(epochs, values, style, markersize=3.5, color=f"C{i}", label=label, clip_on=False)
    for axes in (left, right):
        axes.set(xlabel="epoch", ylabel="nats per image", xlim=(0, None))
        axes.xaxis.get_major_locator().set_params(integer=True)
    left.set_title("reconstruction, above the entropy of the pixels")
    left.set_ylim(0)
    left.legend()
    if set(terms) <= {"reconstruction", *TERM_LABELS}:
        right.set(title="KL to the prior", ylim=(0, None))
        right.legend()
    else:  # terms of all sizes, also negative ones
        right.set_yscale("symlog", linthresh=1)
        right.set_title("the other terms")
        right.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    _save(figure, path)


@styled()
def reconstructions(path: Path, originals: Tensor, decoded: Tensor, results: dict, model: str) -> None:
    """Test images (10, n, 3, 28, 28), a row for each digit, and beside them their decoded codes."""
    n = originals.shape[1]
    figure, (panels,) = _figure(1, 2, CELL * 2 * n + 1, CELL * 10 + 0.9)
    for axes, images in zip(panels, (originals, decoded), strict=True):
        _tiles(axes, images, data.class_names(), [])
    panels[0].set_title("test images")
    panels[1].set_title("decoded from their codes")
    panels[0].set_ylabel("digit")
    figure.suptitle(f"{model}, reconstruction: {_percentages('reconstruction', results)}")
    _save(figure, path)


def _scatter_by_hue(axes: Axes, codes: np.ndarray, hues: np.ndarray, limit: float | None = None) -> PathCollection:
    """Points (n, 2) of the plane in their hues (n,); shows it up to ± `limit`, or all of them."""
    axes.set(xlabel="$z_1$", ylabel="$z_2$", aspect="equal")
    if limit is not None:
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
    return axes.scatter(*codes.T, c=hues, cmap="hsv", vmin=0, vmax=360, s=2, linewidths=0)


def _plane(codes: Tensor) -> np.ndarray:
    """The first two numbers of codes (n, D). The second is 0 if there is only one."""
    codes = _array(codes)
    return codes[:, :2] if codes.shape[1] > 1 else np.pad(codes, ((0, 0), (0, 1)))


@styled()
def latent_map(path: Path, codes: Tensor, digits: Tensor, hues: Tensor, title: str) -> None:
    """Codes (n, D) of test images twice: by digit (n,) and by true hue (n,)."""
    figure, ((left, right),) = _figure(1, 2, WIDTH, 3.9, sharex=True, sharey=True)
    codes, digits = _plane(codes), _array(digits)
    points = left.scatter(*codes.T, c=digits, cmap="tab10", vmin=-0.5, vmax=9.5, s=2, linewidths=0)
    if data.class_names()[0] != "0":
        bar = figure.colorbar(points, ax=left, location="left")
        bar.set_ticks(range(10), labels=[f"{name} {i}" for i, name in enumerate(data.class_names())])
    limit = 1.1 * np.quantile(np.abs(codes), 0.995)  # without the outermost
    _draw_numerals(left, codes, digits, 0.9 * limit)
    left.set(xlabel="$z_1$", ylabel="$z_2$", aspect="equal", title="by digit (each numeral points to its codes)")
    points = _scatter_by_hue(right, codes, _array(hues), limit)
    right.set_title("by true hue")
    figure.colorbar(points, ax=right, label="hue, degrees", ticks=range(0, 361, 60))
    figure.suptitle(title)
    _save(figure, path)


def _draw_numerals(axes: Axes, codes: np.ndarray, digits: np.ndarray, radius: float) -> None:
    """A numeral for each digit (n,) on a circle around the codes (n, 2), with a line to its codes.

    Digits lie on rings, so a median of all codes is no place of its digit. Each digit gets one of
    ten sectors of the plane, the one with most of its codes among those left, and the median of its
    codes there.
    """
    sectors = np.floor(np.arctan2(codes[:, 1], codes[:, 0]) * 5 / np.pi).astype(int) % 10
    free = set(range(10))
    for digit in np.unique(digits):
        counts = np.bincount(sectors[digits == digit], minlength=10)
        sector = max(free, key=counts.__getitem__)
        free.remove(sector)
        if counts[sector]:
            spot = np.median(codes[(digits == digit) & (sectors == sector)], 0)
            place = radius * np.cos((sector + 0.5) * np.pi / 5), radius * np.sin((sector + 0.5) * np.pi / 5)
            style = {"fontweight": "bold", "ha": "center", "va": "center", "arrowprops": {"arrowstyle": "-"}}
            box = {"boxstyle": "circle,pad=0.15", "facecolor": "white"}
            axes.annotate(str(digit), spot, place, bbox=box, **style)
            axes.plot(*spot, "o", color=matplotlib.colormaps["tab10"](digit), markeredgecolor="black", markersize=5)


@styled()
def plane(path: Path, images: Tensor, ticks: Tensor, title: str) -> None:
    """The plane decoded on a regular grid: images (n, n, 3, 28, 28), the highest z2 first."""
    n = len(ticks)
    cell = _cell(n, 0.8)
    figure, ((axes,),) = _figure(1, 1, cell * n + 0.8, cell * n + 1)
    _draw_plane(axes, images, ticks)
    figure.suptitle(title)
    _save(figure, path)


def _draw_plane(axes: Axes, images: Tensor, ticks: Tensor) -> None:
    values = [f"{value:.1f}" if i % 2 == 0 else "" for i, value in enumerate(_array(ticks).round(1) + 0.0)]
    _tiles(axes, images, values[::-1], values, gap=0)
    axes.set(xlabel="$z_1$", ylabel="$z_2$")


@styled()
def color_wheel(path: Path, images: Tensor, ticks: Tensor, codes: Tensor, hues: Tensor, model: str) -> None:
    """The plane of the continuous numbers: decoded for one discrete code, and the test codes."""
    n = len(ticks)
    cell = _cell(2 * n, 1.1)
    figure, ((left, right),) = _figure(1, 2, cell * 2 * n + 1.1, cell * n + 1)
    _draw_plane(left, images, ticks)
    left.set_title("decoded, categories of the first test image")
    first, second, *_, last = _array(ticks)
    _draw_color_wheel(right, codes, hues, last + (second - first) / 2)
    right.set_title("codes of test images in their true hues")
    figure.suptitle(f"{model}: the plane of the continuous numbers (z)")
    _save(figure, path)


def _draw_color_wheel(axes: Axes, codes: Tensor, hues: Tensor, limit: float) -> None:
    """The plane's codes in their true hues, up to ± `limit`, each thirtieth degree written."""
    codes, hues = _plane(codes), _array(hues)
    _scatter_by_hue(axes, codes, hues, limit)
    box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
    for hue in range(0, 360, 30):
        near = np.abs((hues - hue + 180) % 360 - 180) < 5
        if near.any():
            axes.text(*(1.7 * np.median(codes[near], 0)), f"{hue}°", ha="center", va="center", fontsize=8, bbox=box)


@styled()
def finding(path: Path, codes: Tensor, hues: Tensor, answers: Tensor) -> None:
    """The joint model in one picture: codes (n, D) in their hues (n,), and digits on demand.

    `answers` (10, C, 3, 28, 28): the pictures of each digit in C hues around the wheel.
    """
    n = answers.shape[1]
    figure, ((left, right),) = _figure(1, 2, WIDTH, 3.7, width_ratios=(10, n))  # equal heights
    _draw_color_wheel(left, codes, hues, 3.5)
    left.set_title("the continuous numbers (z) hold the hue:\ncodes of test images in their true hues")
    _tiles(right, answers, data.class_names(), [f"{round(360 * i / n)}°" for i in range(n)])
    right.tick_params(axis="x", labelsize=8)
    right.set(xlabel="requested hue", ylabel="requested digit")
    right.set_title("any digit in any hue, on demand:\nthe code found for each request, decoded")
    _save(figure, path)


@styled()
def neighborhoods(path: Path, images: Tensor, names: list[str], spots: Tensor, step: float) -> None:
    """Neighbourhoods in the plane: images (E, n, n, 3, 28, 28), request names (E), spots (E, 2)."""
    n, rows = images.shape[1], -(-len(images) // 2)
    cell = _cell(2 * n, 1.6)
    figure, panels = _figure(rows, 2, cell * 2 * n + 1.6, rows * (cell * n + 0.8) + 0.4)
    panels = panels.flatten()
    for axes, square, name, (z1, z2) in zip(panels, images, names, _plane(spots), strict=False):
        offsets = (np.arange(n) - n // 2) * step
        _tiles(axes, square, [f"{z2 + o:.2f}" for o in offsets[::-1]], [f"{z1 + o:.2f}" for o in offsets])
        _frame(axes, n // 2, n // 2)
        axes.set(title=name, xlabel="$z_1$", ylabel="$z_2$")
        axes.tick_params(axis="both", labelsize=8)
    for axes in panels[len(images) :]:
        axes.set_axis_off()
    figure.suptitle("Continuous VAE, control on demand: the code found (framed) and those around it, decoded")
    _save(figure, path)


@styled()
def categories(path: Path, images: Tensor, pair: tuple[str, str], own: list[int], title: str) -> None:
    """Decoded codes (R, C, 3, 28, 28) of a pair's categories, the first down, the second across.

    `own`: the first test image's categories, whose cell is framed.
    """
    rows, columns = images.shape[:2]
    cell = _cell(columns, 0.6)
    figure, ((axes,),) = _figure(1, 1, cell * columns + 0.6, cell * rows + 1)
    _tiles(axes, images, list(range(1, rows + 1)) if rows > 1 else [""], list(range(1, columns + 1)))
    _frame(axes, own[0] if rows > 1 else 0, own[1])
    axes.set(xlabel=f"category of {pair[1]} (framed: the first test image's)", title=title)
    axes.set_ylabel(f"category of {pair[0]}" if rows > 1 else "")
    _save(figure, path)


@styled()
def knob_rows(path: Path, rows: dict[str, tuple[Tensor, Tensor, list[str]]], title: str) -> None:
    """A row for each knob: a test image (3, 28, 28), pictures (S, 3, 28, 28), and S knob values."""
    steps = max(len(pictures) for _, pictures, _ in rows.values())
    cell = (WIDTH - 0.6) / (steps + 1)
    figure, panels = _figure(len(rows), 1, WIDTH, len(rows) * (cell + 0.25) + 0.35)
    for axes, (name, (image, pictures, values)) in zip(panels[:, 0], rows.items(), strict=True):
        _tiles(axes, np.concatenate([_array(image)[None], _array(pictures)])[None], [name], ["image", *values])
        axes.axvline(29, color="white", linewidth=3)
        axes.tick_params(axis="x", rotation=0, pad=1)
    figure.suptitle(title)
    _save(figure, path)


@styled()
def asked_and_measured(path: Path, curves: dict[str, tuple[str, Tensor, Tensor]], title: str) -> None:
    """For each knob its unit, the moves asked for (S,), and the changes measured (S, n)."""
    figure, (panels,) = _figure(1, len(curves), WIDTH, 2.9)
    for axes, (name, (unit, asked, measured)) in zip(panels, curves.items(), strict=True):
        asked, quantiles = _array(asked), np.nanquantile(_array(measured), (0.05, 0.25, 0.5, 0.75, 0.95), axis=1)
        axes.plot(asked, asked, color="grey", linewidth=1, linestyle="--", label="as asked")
        for low, high, shade, label in ((0, 4, 0.15, "90% of images"), (1, 3, 0.3, "50% of images")):
            axes.fill_between(asked, quantiles[low], quantiles[high], color="C0", alpha=shade, lw=0, label=label)
        axes.plot(asked, quantiles[2], color="C0", label="median")
        axes.set(title=name, xlabel=f"asked for, {unit}")
    panels[0].set_ylabel("measured in the picture")
    panels[0].legend(fontsize=8)
    figure.suptitle(title)
    _save(figure, path)


@styled()
def confusion(path: Path, counts: list[list[int]], names: list[int], title: str) -> None:
    """How many test images of each digit are in each category of the first variable: (K, 10).

    `names` (K,): the digit that each category is named after; its cell is framed. Rows are in the
    order of the names.
    """
    figure, ((axes,),) = _figure(1, 1, 5.6, 0.38 * len(names) + 1.3)
    order = sorted(range(len(names)), key=lambda k: names[k])
    values = np.array(counts)[order]
    axes.imshow(np.log1p(values), cmap="Greys", aspect="auto")
    for r, row in enumerate(values):
        for c, value in enumerate(row):
            axes.text(c, r, value, ha="center", va="center", fontsize=8, color="white" if value > 60 else "black")
        framed = Rectangle((names[order[r]] - 0.5, r - 0.5), 1, 1, fill=False, edgecolor="tab:orange", linewidth=2)
        axes.add_patch(framed)
    classes = data.class_names()
    axes.set_xticks(range(10), classes, rotation=0 if classes[0] == "0" else 60)
    axes.set_yticks(range(len(names)), [f"{classes[names[k]]} (category {k + 1})" for k in order])
    axes.set(xlabel="digit of the test image", ylabel="category of the digit variable, named after", title=title)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _save(figure, path)


@styled()
def latent_usage(path: Path, results: dict, model: str, hue_bins: int = 12) -> None:
    """A row for each latent: its KL and its information on digit and hue, in nats.

    `results` are those of metrics.evaluate. Colour latents are named as such. With
    metrics.color_wheel_scores the angle of (z1, z2) has a row.
    """
    columns = {
        "kl": "KL",
        "mi_digit": f"mutual information\nwith the digit (≤ {np.log(10):.2f})",
        "mi_hue": f"mutual information\nwith the hue (≤ {np.log(hue_bins):.2f})",
    }
    rows = {}
    for name, latent in results["latents"].items():
        rows[f"{name} (colour)" if name in results["color_latents"] else name] = [latent[key] for key in columns]
        if name == "z2" and "angle_mi_hue" in results:
            rows["angle of (z1, z2)"] = [np.nan, results["angle_mi_digit"], results["angle_mi_hue"]]
    values = np.array(list(rows.values()))
    figure, ((axes,),) = _figure(1, 1, 5.8, 0.32 * len(rows) + 1.4)
    shaded = np.pad(values[:, 1:], ((0, 0), (1, 0)))  # the information, not the KL
    axes.imshow(shaded, cmap="Greys", vmin=0, vmax=np.log(hue_bins), aspect="auto")
    for r, row in enumerate(values):
        for c, value in enumerate(row):
            text, color = "–" if np.isnan(value) else f"{value:.2f}", "white" if c and value > 1.4 else "black"
            axes.text(c, r, text, ha="center", va="center", color=color)
    axes.set_xticks(range(3), list(columns.values()))
    axes.set_yticks(range(len(rows)), list(rows))
    axes.xaxis.tick_top()
    axes.set_xlabel("(colour): taken from the other image in control by swap")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.suptitle(f"{model}: what each latent carries, in nats")
    _save(figure, path)


@styled()
def control_on_demand(path: Path, images: Tensor, right: Tensor, results: dict, model: str) -> None:
    """Digits down, hues across: the first code for each request, with a cross if it is wrong."""
    n = images.shape[1]
    cell = _cell(n, 0.5)
    figure, ((axes,),) = _figure(1, 1, cell * n + 0.5, cell * 10 + 0.75)
    _tiles(axes, images, data.class_names(), [f"{round(360 * i / n)}°" if i % 2 == 0 else "" for i in range(n)])
    _mark(axes, ~_array(right))
    axes.tick_params(axis="x", labelsize=8)
    axes.set(ylabel="requested digit", xlabel="requested hue (× marks a wrong digit or hue)")
    figure.suptitle(f"{model}, control on demand: {_percentages('demand', results)}")
    _save(figure, path)


@styled()
def control_by_swap(
    path: Path, digit_images: Tensor, color_images: Tensor, swaps: Tensor, right: Tensor, results: dict, model: str
) -> None:
    """Digits from the first row (C, ...), hues from the first column (R, ...): (R, C, ...)."""
    rows, columns = swaps.shape[:2]
    figure, ((axes,),) = _figure(1, 1, CELL * (columns + 1) + 0.5, CELL * (rows + 1) + 1)
    first_row = np.concatenate([np.ones((1, 1, 3, 28, 28)), _array(digit_images)[None]], 1)
    other_rows = np.concatenate([_array(color_images)[:, None], _array(swaps)], 1)
    _tiles(axes, np.concatenate([first_row, other_rows]), [], [])
    _mark(axes, np.pad(~_array(right), ((1, 0), (1, 0))))
    axes.set_xlabel("digit from the first row, hue from the first column\n(× marks a wrong digit or hue)")
    figure.suptitle(f"{model}, control by swap:\n{_percentages('swap', results)}")
    _save(figure, path)


DIRECTIONS = {"a_to_b": "A → B", "b_to_a": "B → A"}


@styled()
def translations(path: Path, rows: dict[str, tuple[Tensor, Tensor, Tensor, Tensor]], results: dict) -> None:
    """Both directions, a column a digit: test image, translation and true target below each other.

    `rows`: direction → originals, translations, targets, each (n, 10, 3, 28, 28), and which are
    right, bool (n, 10).
    """
    n = len(next(iter(rows.values()))[0])
    figure, (panels,) = _figure(1, 2, CELL * 20 + 2, CELL * 3 * n + 1.3)
    for axes, (name, (originals, outputs, targets, right)) in zip(panels, rows.items(), strict=True):
        images = np.stack([_array(originals), _array(outputs), _array(targets)], 1).reshape(3 * n, 10, 3, 28, 28)
        _tiles(axes, images, ["test image", "translation", "true target"] * n, data.class_names())
        wrong = np.zeros((3 * n, 10), bool)
        wrong[1::3] = ~_array(right)
        _mark(axes, wrong)
        shares = (100 * results[f"{name}_{part}"] for part in ("digit", "exact", "both"))
        axes.set_title("{}: digit kept {:.1f}%, colour exact {:.1f}%, both {:.1f}%".format(DIRECTIONS[name], *shares))
        axes.set_xlabel("digit (×: misread by the judge, or not exact in colour)")
    _save(figure, path)


@styled()
def color_maps(path: Path, maps: dict[str, Tensor], palettes: dict[str, Tensor], names: dict[str, tuple]) -> None:
    """The permutation found: for each direction, each digit's shares (10, 10) of colours.

    A square's area is the share, its colour the colour. The frame shows where it should be.
    `palettes` (10, 3) and `names` are the target domain's, by digit.
    """
    figure, (panels,) = _figure(1, 2, WIDTH, 5)
    for axes, (name, shares) in zip(panels, maps.items(), strict=True):
        for digit, row in enumerate(_array(shares)):
            axes.add_patch(Rectangle((digit - 0.5, digit - 0.5), 1, 1, fill=False, edgecolor="black", zorder=3))
            for color, share in enumerate(row):
                side = share**0.5
                corner = (color - side / 2, digit - side / 2)
                axes.add_patch(Rectangle(corner, side, side, color=_array(palettes[name])[color]))
        axes.set_facecolor("0.85")
        axes.set(xlim=(-0.5, 9.5), ylim=(9.5, -0.5), aspect="equal", title=DIRECTIONS[name], ylabel="digit")
        axes.set_xticks(range(10), names[name], rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(10), data.class_names())
        axes.tick_params(length=0)
    title = "The area of a square: the share of the digit's test images that came out in this colour.\n"
    figure.suptitle(title + "The frame marks the right colour; filled, all images came out in it.")
    _save(figure, path)


@styled()
def translation_movie(path: Path, rows: dict[str, tuple[Tensor, Tensor, Tensor, Tensor]], history: list[dict]) -> None:
    """The first test image of each digit over training: `rows` as in `translations`.

    Of each direction the test images, what is made of them, and what should be, below each other; a
    cross on each wrong colour. Pictures are from the history, after 50, 100, 200, 400 ... updates.
    """
    steps = {0, *(50 * 2**i for i in range(30)), history[-1]["step"]}
    shown = [row for row in history if row["step"] in steps]
    shown += 2 * shown[-1:]  # the last one stays for a while
    frames, wrong = [], []
    for row in shown:
        pictures, right = _array(row["pictures"]) / 255, _array(row["right"])  # (2, 10, 3, 28, 28), (2, 10)
        frame, crosses = [], np.zeros((6, 10), bool)
        for i, name in enumerate(DIRECTIONS):
            frame += [_array(rows[name][0][0]), pictures[i], _array(rows[name][2][0])]
            crosses[3 * i + 1] = ~right[i]
        frames.append(np.stack(frame))
        wrong.append(crosses)
    titles = [
        f"After {row['step']:,} updates {100 * row['a_to_b_exact']:.1f}% are exact from A to B, "
        f"{100 * row['b_to_a_exact']:.1f}% from B to A"
        for row in shown
    ]
    labels = ["an image of A", "translated to B", "true target in B", "an image of B", "translated to A"]
    labels.append("true target in A")
    label = "A and B give the same ten colours to the digits differently. ×: a wrong colour"
    movie(path, np.stack(frames), titles, labels, data.class_names(), label, fps=1, wrong=wrong)


@styled()
def translation_curves(path: Path, history: list[dict]) -> None:
    """Colour right and exact and digit kept over the updates, on the log's test images."""
    figure, ((axes,),) = _figure(1, 1, 8.2, 3.2)
    steps = [row["step"] for row in history]
    for name, color in (("a_to_b", "tab:blue"), ("b_to_a", "tab:red")):
        for part, label, style in (
            ("color", "colour right", "--"),
            ("exact", "colour exact", "-"),
            ("digit", "digit kept", ":"),
        ):
            values = [100 * row[f"{name}_{part}"] for row in history]
            axes.plot(steps, values, style, marker=".", color=color, label=f"{DIRECTIONS[name]}, {label}")
    axes.set(xlabel="updates", ylabel="%", ylim=(-2, 102), title="Translation over training, 2,000 test images")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))  # beside the curves, wherever they run
    _save(figure, path)


@styled()
def comparison(
    path: Path, originals: Tensor, pictures: dict[str, tuple[Tensor, Tensor]], shown: list[tuple[float, float]]
) -> None:
    """Test images (10, 3, 28, 28), each model's reconstructions, and its answers to the requests.

    `pictures`: model → (reconstructions, answers), each (10, 3, 28, 28). `shown`: the requests
    (digit, hue in degrees).
    """
    n = len(originals)
    figure, ((left, right),) = _figure(1, 2, CELL * 2 * n + 2, CELL * 4 + 1.2, width_ratios=(1, 1))
    kept = np.stack([_array(originals), *(_array(kept) for kept, _ in pictures.values())])
    _tiles(left, kept, ["test image", *pictures], data.class_names())
    left.set_title("reconstruction of the first test image of each digit")
    blank = np.ones((1, n, 3, 28, 28))
    asked = np.concatenate([blank, np.stack([_array(asked) for _, asked in pictures.values()])])
    _tiles(right, asked, ["request", *pictures], [""] * n)
    for i, (digit, hue) in enumerate(shown):
        right.text(30 * i + 14, 14, f"{digit:.0f}\n{hue:.0f}°", ha="center", va="center")
    right.set_title("the picture of a digit in a hue, on demand")
    _save(figure, path)


@styled()
def swaps(path: Path, digit_images: Tensor, color_images: Tensor, pictures: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Digit and style of the first row (10, 3, 28, 28), hue of the second, in each model's picture.

    `pictures`: label → (the swaps, (10, 3, 28, 28), which of them are right, bool (10,)).
    """
    figure, ((axes,),) = _figure(1, 1, CELL * 10 + 2, CELL * (len(pictures) + 2) + 0.5)
    rows = [digit_images, color_images, *(swapped for swapped, _ in pictures.values())]
    _tiles(axes, np.stack([_array(row) for row in rows]), ["digit and style of", "hue of", *pictures], [])
    wrong = [~_array(right) for _, right in pictures.values()]
    _mark(axes, np.concatenate([np.zeros((2, 10), bool), wrong]))
    axes.set_xlabel("× marks a wrong digit or hue")
    _save(figure, path)


def _percentages(name: str, results: dict) -> str:
    digit, hue, both = (100 * results[f"{name}_{part}"] for part in ("digit", "hue", "both"))
    word = "kept" if name == "reconstruction" else "right"
    return f"digit {word} {digit:.1f}%, hue {word} {hue:.1f}%, both {both:.1f}%"
