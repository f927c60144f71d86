"""MNIST as tensors, and the colours that its digits wear.

The images stay grey in memory (47 MB of uint8). A batch gets its colours on the device, when it is needed:

    train = data.colored_set(train=True, device=device)
    x = train.colored(index)  # float32 (B, 3, 28, 28) in [0, 1]
"""

import contextlib
import math
import os
import shutil
import socket
import ssl
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from itertools import pairwise
from pathlib import Path
from urllib.error import URLError

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torchvision.datasets.utils import calculate_md5, check_integrity

# The import fails if MPLBACKEND names a window system that this Python lacks. Notebooks hand theirs on to `!python`. No
# figure needs one, so the name is put aside for as long as the import takes.
_backend = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
import matplotlib.colors  # noqa: E402

if _backend is not None:
    os.environ["MPLBACKEND"] = _backend
    with contextlib.suppress(ValueError):
        matplotlib.rcParams["backend"] = _backend

# What to load: "MNIST", or one of the two datasets of the same format, "FashionMNIST" and "KMNIST".
DATASET = "MNIST"
DATA_DIR = Path(__file__).parent / "datasets"  # the files are in DATA_DIR/DATASET/raw/

TIMEOUT = 30.0  # seconds that a server may stay silent during a download

# Ranges (low, high) within [0, 1] of the random colours. (1, 1) gives pure, full colours. A wider VALUE adds dark
# digits, a wider SATURATION pale ones (at saturation 0 an image has no hue to score).
SATURATION = (1.0, 1.0)
VALUE = (1.0, 1.0)

# Seeds of the random colours. They are the same in every run: all models see, and are scored on, the same images.
TRAIN_COLOR_SEED = 1
TEST_COLOR_SEED = 2

# The two domains of cyclegan_colors.py: the colour of each digit, 0 to 9, as CSS names. B gives digit d the colour that
# digit (d + 1) mod 10 wears in A.
DOMAIN_A = ("red", "darkorange", "yellow", "lime", "teal", "cyan", "blue", "purple", "magenta", "white")
DOMAIN_B = ("darkorange", "yellow", "lime", "teal", "cyan", "blue", "purple", "magenta", "white", "red")

# The constants above that decide what a script sees: in a set with random colours, and in the two domains.
RANDOM_COLORS = ("DATASET", "SATURATION", "VALUE", "TRAIN_COLOR_SEED", "TEST_COLOR_SEED")
DOMAINS = ("DATASET", "DOMAIN_A", "DOMAIN_B")

# MD5 sums of the extracted files, in the order of torchvision's `resources`: training images, training labels, test
# images, test labels. KMNIST's are not known here: torchvision checks its archives.
MD5 = {
    "MNIST": (
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ),
    "FashionMNIST": (
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a",
        "15d484375f8d13e6eb1aabb0c3f46965",
    ),
}


def __getattr__(name: str):
    """What `data.NAME` does where there is no such name."""
    if name.isupper():
        raise SystemExit(f"{name} is not defined: put it back among the constants of data.py.")
    raise AttributeError(f"module 'data' has no attribute {name!r}")


# ------------------------------------------------------------------------------------------------- the images


def load(train: bool) -> tuple[Tensor, Tensor]:
    """The training or the test set of DATASET: images uint8 (n, 28, 28), digits int64 (n,).

    The first call extracts the .gz files, or has torchvision download them. Exits with one sentence if a file is
    missing, damaged, of another dataset, or cannot be read.
    """
    if DATASET not in ("MNIST", "FashionMNIST", "KMNIST"):
        raise SystemExit(f"DATASET in data.py is {DATASET!r}: it must be 'MNIST', 'FashionMNIST' or 'KMNIST'.")
    dataset = getattr(torchvision.datasets, DATASET)
    raw = Path(DATA_DIR) / DATASET / "raw"
    files = [raw / Path(archive).stem for archive, _ in dataset.resources]
    try:
        if not all(file.exists() for file in files):
            _extract(dataset, raw)
        for i in (0, 1) if train else (2, 3):
            _check(files[i], i)
        loaded = dataset(DATA_DIR, train=train)
    except OSError as error:
        raise SystemExit(f"{error.filename or raw} cannot be read or written: {error.strerror or error}.") from None
    except (RuntimeError, ValueError, AssertionError) as error:
        raise SystemExit(f"The {DATASET} files in {raw} are damaged: delete them and run again ({error}).") from None
    return loaded.data, loaded.targets.long()


def _extract(dataset: type, raw: Path) -> None:
    """Has torchvision verify and extract the archives in `raw`, and download the missing ones.

    This happens in a temporary folder, and whole files are moved: a process that is killed leaves no half file.
    """
    for archive, md5 in dataset.resources:
        if (raw / archive).exists() and not check_integrity(raw / archive, md5):
            advice = "put that back, delete the file to have it downloaded, or extract the four files yourself"
            raise SystemExit(f"{raw / archive} is damaged or not the original file of {DATASET}: {advice}.")
        if not (raw / archive).exists():
            print(f"{archive} is not in {raw}: downloading {DATASET}.")
    Path(DATA_DIR).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tmp", dir=DATA_DIR) as temporary:
        scratch = Path(temporary) / DATASET / "raw"
        scratch.mkdir(parents=True)
        for archive in raw.glob("*.gz"):
            shutil.copy(archive, scratch)
        try:
            with _patience(TIMEOUT):
                dataset(temporary, download=True)
        except (RuntimeError, URLError, ConnectionError, TimeoutError, HTTPException, ssl.SSLError) as error:
            why = f"could not be downloaded ({(str(error) or type(error).__name__).splitlines()[0]})"
            raise SystemExit(f"{DATASET} is not in {raw} and {why}: put its four .gz files there.") from None
        raw.mkdir(parents=True, exist_ok=True)
        for file in scratch.iterdir():
            if not (raw / file.name).exists():
                os.replace(file, raw / file.name)


@contextlib.contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Connections made in the block raise TimeoutError when nothing arrives for so long; else they wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _check(file: Path, i: int) -> None:
    """Exits with one sentence if an extracted file, number i of MD5's, is not the one of DATASET."""
    md5 = calculate_md5(file)
    foreign = any(md5 in sums for name, sums in MD5.items() if name != DATASET)
    if foreign or md5 != MD5.get(DATASET, {i: md5})[i]:
        advice = "delete it, and it is extracted again from the .gz file beside it, or downloaded"
        raise SystemExit(f"{file} is damaged or not the file of {DATASET}: {advice}.")


def class_names() -> list[str]:
    """What figures call the ten classes of DATASET: the digits for MNIST, torchvision's names for the others."""
    return [str(digit) for digit in range(10)] if DATASET == "MNIST" else getattr(torchvision.datasets, DATASET).classes


def deform(
    x: Tensor, shift: float, rotation: float, scale: float, stretch: float = 0, shear: float = 0, elastic: float = 0
) -> Tensor:
    """Images (B, C, 28, 28), each shifted, turned, scaled, stretched, sheared and distorted at random.

    The first five are bounds of uniform distributions around none: pixels along each axis, degrees, a share of the
    size, a share of the width, horizontal pixels for each vertical one. `elastic` is the standard deviation, in pixels,
    of a displacement drawn at 5 × 5 points and interpolated between them (after Simard et al. 2003). Pixels are
    interpolated bilinearly. What comes in from outside is black.
    """
    shifts, angles, scales = torch.rand(3, 2, len(x), device=x.device) * 2 - 1
    shifts = shifts * shift / 14  # grid_sample's coordinates span [-1, 1]
    angle, size, slant = angles[0] * math.radians(rotation), 1 + scales[0] * scale, angles[1] * shear
    cos, sin, width = angle.cos() * size, angle.sin() * size, 1 + scales[1] * stretch
    rows = (cos * width, cos * slant - sin, shifts[0]), (sin * width, sin * slant + cos, shifts[1])
    grid = F.affine_grid(torch.stack([torch.stack(row, 1) for row in rows], 1), x.shape, align_corners=False)
    if elastic:
        displacement = torch.randn(len(x), 2, 5, 5, device=x.device) * elastic / 14
        displacement = F.interpolate(displacement, size=x.shape[2:], mode="bicubic", align_corners=True)
        grid = grid + displacement.permute(0, 2, 3, 1)
    return F.grid_sample(x, grid, align_corners=False)


# ------------------------------------------------------------------------------------------------ the colours


def random_colors(n: int, seed: int) -> Tensor:
    """n random colours, float32 (n, 3) RGB in [0, 1]: hue uniform on the wheel, the rest from SATURATION and VALUE.

    Colour i depends only on (seed, i), whatever n, the order of batches and other random states. Exits with one
    sentence if SATURATION or VALUE is no range.
    """
    for name, bounds in (("SATURATION", SATURATION), ("VALUE", VALUE)):
        if not (isinstance(bounds, tuple) and len(bounds) == 2 and _ordered(0, *bounds, 1)):
            raise SystemExit(f"{name} in data.py is {bounds!r}: it must be (low, high) with 0 <= low <= high <= 1.")
    uniform = torch.rand(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    low, high = torch.tensor([(0, 1), SATURATION, VALUE], dtype=torch.float64).T  # hue, saturation, value
    return torch.from_numpy(matplotlib.colors.hsv_to_rgb((low + (high - low) * uniform).numpy())).float()


def _ordered(*values) -> bool:
    return all(type(v) in (int, float) for v in values) and all(low <= high for low, high in pairwise(values))


def rgb_to_hue(rgb: Tensor) -> Tensor:
    """RGB colours (..., 3) → hue in degrees, [0, 360]; NaN where there is none (grey, black).

    Smith, Color gamut transform pairs, SIGGRAPH 1978. matplotlib's rgb_to_hsv has no device, and calls grey red.
    """
    high, low = rgb.amax(-1), rgb.amin(-1)
    r, g, b = rgb.unbind(-1)
    not_red = torch.where(g == high, 2 + (b - r) / (high - low), 4 + (r - g) / (high - low))
    sector = torch.where(r == high, (g - b) / (high - low), not_red)
    return (60 * sector) % 360


def colorize(images: Tensor, colors: Tensor) -> Tensor:
    """Grey uint8 images (B, 28, 28) in RGB colours (B, 3) → float32 (B, 3, 28, 28) in [0, 1]: grey level × colour.

    The product keeps strokes anti-aliased: a half-grey pixel gets half the colour.
    """
    return (images[:, None] / 255) * colors[:, :, None, None]


def palette(name: str, css_names: tuple[str, ...]) -> Tensor:
    """The ten colours of a domain, float32 (10, 3) RGB in [0, 1].

    Exits with one sentence if they are not ten visible, different colours; warns of two that are near each other.
    """
    if not (isinstance(css_names, tuple) and len(css_names) == 10):
        raise SystemExit(f"{name} in data.py is {css_names!r}: it must be a tuple of ten colour names, one a digit.")
    for css_name in css_names:
        if not matplotlib.colors.is_color_like(css_name):
            raise SystemExit(f"{name} in data.py names {css_name!r}, which is not a CSS colour.")
    colors = torch.tensor([matplotlib.colors.to_rgb(css_name) for css_name in css_names])
    darkest = int(colors.amax(1).argmin())
    if colors[darkest].max() < 0.1:
        unseen = f"{css_names[darkest]!r}, which cannot be seen on black"
        raise SystemExit(f"{name} in data.py has {unseen}: take a lighter one.")
    distances = torch.cdist(colors, colors) + 9 * torch.eye(10)
    i, j = divmod(int(distances.argmin()), 10)
    if distances.min() == 0:
        raise SystemExit(f"{name} in data.py gives digits {i} and {j} the same colour: it must give each its own.")
    if distances.min() < 0.25:
        near = f"{css_names[i]} and {css_names[j]} of {name} are only {distances.min():.2f} apart"
        print(f"Warning: {near} in RGB (black to white is 1.73): one may be mistaken for the other.")
    return colors


# ------------------------------------------------------------------------------------------- images in colours


@dataclass(frozen=True)
class ColoredSet:
    """Grey images, the digit in each, and the colour it wears. No training looks at `digits`."""

    images: Tensor  # uint8 (n, 28, 28)
    digits: Tensor  # int64 (n,)
    colors: Tensor  # float32 (n, 3), RGB in [0, 1]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, part: slice | Tensor) -> "ColoredSet":
        return ColoredSet(self.images[part], self.digits[part], self.colors[part])

    def colored(self, index: slice | Tensor) -> Tensor:
        """The images of these indices (B,) in their colours, float32 (B, 3, 28, 28) in [0, 1]."""
        return colorize(self.images[index], self.colors[index])

    @property
    def hues(self) -> Tensor:
        """Degrees, (n,)."""
        return rgb_to_hue(self.colors)


def colored_set(train: bool, device: torch.device) -> ColoredSet:
    """The training or the test set on the device, with its random colours."""
    images, digits = load(train)
    colors = random_colors(len(images), TRAIN_COLOR_SEED if train else TEST_COLOR_SEED)
    return ColoredSet(images.to(device), digits.to(device), colors.to(device))


def mean_level(colored: ColoredSet) -> Tensor:
    """The mean of all pixels of a set whose colours do not depend on its images, float32 () in [0, 1]."""
    return (colored.images.double().mean() / 255 * colored.colors.double().mean()).float()
