"""330 digits in eleven designed hands, as strokes: shapes that MNIST hardly has, such as a visitor draws.

One author designed them before any model was tuned, and only their clarity to a reader decided what stayed. No model
trains on them. A drawing becomes a picture as MNIST's digits did (LeCun et al. 1998): its ink fits into 20 pixels, its
centre of mass is pixel (14, 14). The page takes the same steps.
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FILE = Path(__file__).with_name("drawings.json")
SIZE = 28  # pixels, each side of a picture
BOX = 18  # pixels, the larger side of the box around the strokes' middle lines; the ink is 2 × RADIUS larger
RADIUS = 1.2  # pixels, half the thickness of a stroke: so strokes are as thick as MNIST's, 2.4 pixels
CENTRE = 14.5  # pixels from the left and the top edge: the middle of pixel 14, as in MNIST's own files

Stroke = list[list[float]]  # points [x, y], y down, in any unit


def load() -> tuple[list[list[Stroke]], Tensor, list[str]]:
    """All drawings, in a field of 400 × 400: strokes of each, digits int64 (n,), each one's hand."""
    drawings = json.loads(FILE.read_text(encoding="utf-8"))
    digits = torch.tensor([drawing["digit"] for drawing in drawings])
    return [drawing["strokes"] for drawing in drawings], digits, [drawing["hand"] for drawing in drawings]


def render(strokes: list[Stroke]) -> Tensor:
    """A drawing of at least one point → its picture, uint8 (28, 28), ink 255. A lone dot stays a dot.

    Ink more than 14 pixels from the centre of mass is cut off: the foot of a tall 7.
    """
    lines = [np.array(stroke, dtype=np.float64) for stroke in strokes if stroke]
    low, high = np.concatenate(lines).min(0), np.concatenate(lines).max(0)
    scale = BOX / max(*(high - low), 1e-9)
    # Segments (n, 2); a stroke of one point is a segment of no length.
    start = np.concatenate([line[: max(len(line) - 1, 1)] for line in lines])
    end = np.concatenate([line[min(len(line) - 1, 1) :] for line in lines])
    start, end = ((points - (low + high) / 2) * scale + SIZE / 2 for points in (start, end))

    level = _rasterise(start, end)  # the box in the middle of the field: all ink is in it
    middle = np.arange(SIZE) + 0.5
    mass = np.array([level.sum(0) @ middle, level.sum(1) @ middle]) / level.sum()
    level = _rasterise(start + CENTRE - mass, end + CENTRE - mass)  # moved by fractions of a pixel, too
    return torch.from_numpy(np.floor(level * 255 + 0.5).astype(np.uint8))


def _rasterise(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Segments from start to end, each (n, 2) in pixels → grey levels (28, 28) in [0, 1].

    A pixel's level falls from 1 to 0 as its middle goes from half a pixel inside the stroke's edge to
    half a pixel outside.
    """
    middle = np.arange(SIZE) + 0.5
    pixels = np.stack(np.meshgrid(middle, middle), -1)[:, :, None]  # (28, 28, 1, 2): rows, columns, (x, y)
    along = end - start
    share = ((pixels - start) * along).sum(-1) / np.maximum((along**2).sum(-1), 1e-9)
    nearest = start + share.clip(0, 1)[..., None] * along  # (28, 28, n, 2): each segment's nearest point
    distance = np.sqrt(((pixels - nearest) ** 2).sum(-1)).min(-1)
    return (RADIUS + 0.5 - distance).clip(0, 1)


def images() -> tuple[Tensor, Tensor]:
    """The pictures of all drawings: uint8 (n, 28, 28), digits int64 (n,)."""
    strokes, digits, _ = load()
    return torch.stack([render(drawing) for drawing in strokes]), digits
