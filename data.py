"""MNIST as tensors, and the colours of its digits.

The images stay grey in memory (47 MB of uint8). A batch gets its colours on the device, when it is
needed:

    train = data.colored_set(train=True, device=device)
    x = train.colored(index)  # float32 (B, 3, 28, 28) in [0, 1]
"""

import gzip
import hashlib
import json
import math
import os
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torchvision.datasets.utils import check_integrity, download_url

# No figure needs a window, and matplotlib cannot be imported with the MPLBACKEND of another Python,
# which a script inherits when a notebook starts it (`!python vae_joint.py`).
if "ipykernel" not in sys.modules:
    os.environ.pop("MPLBACKEND", None)
import matplotlib.colors

DATASET = "MNIST"  # or a dataset of the same format: "FashionMNIST", "KMNIST"
DATA_DIR = Path(__file__).parent / "datasets"  # the four archives are in DATA_DIR/DATASET/raw/

# Ranges (low, high) of the random colours, within [0, 1].
SATURATION = (1.0, 1.0)  # a lower bound adds pale digits; at 0 an image has no hue to score
VALUE = (1.0, 1.0)  # a lower bound adds dark digits

# Seeds of the random colours. Models with the same seeds train on the same coloured images.
TRAIN_COLOR_SEED = 1
TEST_COLOR_SEED = 2

# How strokes become pictures.
BOX = 18  # pixels, larger side of the box around the strokes' middles: 20 with ink, as MNIST
RADIUS = 1.2  # pixels, half the thickness of a stroke: as thick as MNIST's, 2.4 pixels

# Domains of cyclegan_colors.py, CSS names by digit. In B a digit has the next digit's colour in A.
DOMAIN_A = ("red", "darkorange", "yellow", "lime", "teal", "cyan", "blue", "purple", "magenta", "white")
DOMAIN_B = ("darkorange", "yellow", "lime", "teal", "cyan", "blue", "purple", "magenta", "white", "red")

# The constants above that decide what a script sees: with random colours, in the two domains.
RANDOM_COLORS = ("DATASET", "SATURATION", "VALUE", "TRAIN_COLOR_SEED", "TEST_COLOR_SEED")
DOMAINS = ("DATASET", "DOMAIN_A", "DOMAIN_B")

# Debian's archives of FashionMNIST are compressed anew, so torchvision's MD5 sums do not fit them.
# The content is the same: torchvision's sum of each archive → the sum of its content.
CONTENT_MD5 = {
    "8d4fb7e6c68d591d4c3dfef9ec88bf0d": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "25c81989df183df01b3e8a0aad5dffbe": "9018921c3c673c538a1fc5bad174d6f9",
    "bef4ecab320f06d8554ea6380940ec79": "8181f5470baa50b63fa0f6fddb340f0a",
    "bb300cfdad3c16e7a12a480ee83cd310": "15d484375f8d13e6eb1aabb0c3f46965",
}


# --------------------------------------------------------------------------------------- the images


def load(train: bool) -> tuple[Tensor, Tensor]:
    """The training or the test set of DATASET: images uint8 (n, 28, 28), digits int64 (n,).

    Exits with one sentence if an archive is missing, damaged or another dataset's. The archives of
    FashionMNIST and KMNIST are downloaded if they are missing; MNIST's are in the repository.
    """
    if DATASET not in ("MNIST", "FashionMNIST", "KMNIST"):
        raise SystemExit(f"DATASET in data.py is {DATASET!r}: it must be 'MNIST', 'FashionMNIST' or 'KMNIST'.")
    dataset = getattr(torchvision.datasets, DATASET)
    archives = dataset.resources[:2] if train else dataset.resources[2:]
    raw, mirror = Path(DATA_DIR) / DATASET / "raw", dataset.mirrors[0]
    images, digits = (_unpack(raw / name, md5, mirror) for name, md5 in archives)
    return images[16:].view(-1, 28, 28), digits[8:].long()  # without the headers of the IDX format


def _unpack(archive: Path, md5: str, mirror: str) -> Tensor:
    """The content of an archive of DATASET, uint8 (n,). Nothing is written beside it."""
    try:
        if DATASET != "MNIST" and not archive.exists():
            partial = archive.with_name(f"partial-{archive.name}")
            download_url(mirror + archive.name, partial.parent, partial.name, md5)
            partial.replace(archive)
        content = gzip.decompress(archive.read_bytes())
        intact = check_integrity(archive, md5) or hashlib.md5(content).hexdigest() == CONTENT_MD5.get(md5)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        intact = False
    except OSError as error:
        raise SystemExit(f"{archive} cannot be read or downloaded ({error.strerror or error}): put it there.") from None
    if not intact:
        raise SystemExit(f"{archive} is damaged or not the original file of {DATASET}: put that there.")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def check(images: Tensor, digits: Tensor) -> None:
    """Exits with one sentence unless types and shapes are `load`'s and each digit has images."""
    types, shape = (images.dtype, digits.dtype), (*digits.shape, 28, 28)
    if types != (torch.uint8, torch.int64) or images.ndim != 3 or images.shape != shape:
        found = f"images {images.dtype} {tuple(images.shape)} and digits {digits.dtype} {tuple(digits.shape)}"
        raise SystemExit(f"data.load returned {found}: they must be uint8 (n, 28, 28) and int64 (n,).")
    if (present := digits.unique().tolist()) != list(range(10)):
        raise SystemExit(f"data.load returned images of the digits {present}: it must return some of each, 0 to 9.")


def class_names() -> list[str]:
    """The ten classes' names in figures: digits for MNIST, torchvision's names for the others."""
    return [str(digit) for digit in range(10)] if DATASET == "MNIST" else getattr(torchvision.datasets, DATASET).classes


def deform(x: Tensor, shift: float, rotation: float, scale: float, elastic: float = 0) -> Tensor:
    """Images (B, C, 28, 28), shifted, turned, scaled and distorted at random.

    The first three bound uniform distributions around none: pixels along each axis, degrees, a
    share of the size. `elastic` is the standard deviation, in pixels, of a displacement drawn at 5
    × 5 points and interpolated between them (after Simard et al. 2003). Outside is black.
    """
    shifts, angles, scales = torch.rand(3, 2, len(x), dtype=x.dtype, device=x.device) * 2 - 1
    shifts = shifts * shift / 14  # grid_sample's coordinates span [-1, 1]
    angle, size = angles[0] * math.radians(rotation), 1 + scales[0] * scale
    cos, sin = angle.cos() * size, angle.sin() * size
    rows = (cos, -sin, shifts[0]), (sin, cos, shifts[1])
    grid = F.affine_grid(torch.stack([torch.stack(row, 1) for row in rows], 1), x.shape, align_corners=False)
    if elastic:
        displacement = torch.randn(len(x), 2, 5, 5, dtype=x.dtype, device=x.device) * elastic / 14
        displacement = F.interpolate(displacement, size=x.shape[2:], mode="bicubic", align_corners=True)
        grid = grid + displacement.permute(0, 2, 3, 1)
    return F.grid_sample(x, grid, align_corners=False)


def restyle(x: Tensor, shear: Tensor, log_width: Tensor, weight: Tensor) -> Tensor:
    """Images (B, C, 28, 28) in [0, 1], each sheared, widened and thickened by known amounts (B,).

    Shear: pixels to the right for each pixel up. Log width: the logarithm of the factor. Weight:
    pixels of metrics.weight_of.
    """
    zero, one, narrow = torch.zeros_like(shear), torch.ones_like(shear), (-log_width).exp()
    rows = (narrow, narrow * shear, zero), (zero, one, zero)
    grid = F.affine_grid(torch.stack([torch.stack(row, 1) for row in rows], 1), x.shape, align_corners=False)
    return F.grid_sample(thicken(x, weight), grid, align_corners=False)


def thicken(x: Tensor, weight: Tensor) -> Tensor:
    """Images (B, C, 28, 28) in [0, 1] with strokes `weight` (B,) pixels thicker, or thinner if < 0.

    x + t (m - x), where m is the 3 × 3 maximum: t > 0 fills the pixels around a stroke, t < 0 takes
    its edges away and leaves its middle. t was fitted to training images, to pixels of
    metrics.weight_of: from -0.5 to 1 pixel, the mean change is right within 0.02 pixels, and its
    standard deviation is at most 0.12.
    """
    t = torch.where(weight > 0, weight / 2.57, weight / (1.19 + 1.32 * weight.clamp(min=-0.6)))
    return (x + t[:, None, None, None] * (F.max_pool2d(x, 3, 1, 1) - x)).clamp(0, 1)


# -------------------------------------------------------------------------------------- the colours


def random_colors(n: int, seed: int) -> Tensor:
    """n random colours, float32 (n, 3) RGB in [0, 1].

    The hue is uniform on the wheel, the rest is from SATURATION and VALUE. Colour i depends only on
    (seed, i), whatever n, the order of batches and other random states. Exits with one sentence if
    SATURATION or VALUE is no range.
    """
    for name, bounds in (("SATURATION", SATURATION), ("VALUE", VALUE)):
        numbers = isinstance(bounds, tuple) and [type(bound) in (int, float) for bound in bounds] == [True, True]
        if not (numbers and 0 <= bounds[0] <= bounds[1] <= 1):
            raise SystemExit(f"{name} in data.py is {bounds!r}: it must be (low, high) with 0 <= low <= high <= 1.")
    uniform = torch.rand(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu")
    low, high = uniform.new_tensor([(0, 1), SATURATION, VALUE]).T  # hue, saturation, value
    return torch.from_numpy(matplotlib.colors.hsv_to_rgb((low + (high - low) * uniform).numpy())).float()


def rgb_to_hue(rgb: Tensor) -> Tensor:
    """RGB colours (..., 3) → hue in degrees, [0, 360]; NaN where there is none (grey, black).

    Smith, Color gamut transform pairs, SIGGRAPH 1978. matplotlib's rgb_to_hsv takes no tensors, and
    gives grey the hue of red.
    """
    high, low = rgb.amax(-1), rgb.amin(-1)
    r, g, b = rgb.unbind(-1)
    not_red = torch.where(g == high, 2 + (b - r) / (high - low), 4 + (r - g) / (high - low))
    sector = torch.where(r == high, (g - b) / (high - low), not_red)
    return (60 * sector) % 360


def colorize(images: Tensor, colors: Tensor) -> Tensor:
    """Grey uint8 images (B, 28, 28) in RGB colours (B, 3) → float32 (B, 3, 28, 28) in [0, 1].

    Grey level × colour keeps strokes anti-aliased: a half-grey pixel gets half the colour.
    """
    return (images[:, None].float() / 255) * colors[:, :, None, None]


def palette(name: str, css_names: tuple[str, ...]) -> Tensor:
    """The ten colours of a domain, float32 (10, 3) RGB in [0, 1].

    Exits with one sentence if they are not ten visible, different colours. Warns if two are close.
    """
    if not (isinstance(css_names, tuple) and len(css_names) == 10):
        raise SystemExit(f"{name} in data.py is {css_names!r}: it must be a tuple of ten colour names, one a digit.")
    for css_name in css_names:
        if not matplotlib.colors.is_color_like(css_name):
            raise SystemExit(f"{name} in data.py names {css_name!r}, which is not a CSS colour.")
        if max(matplotlib.colors.to_rgb(css_name)) < 0.1:
            raise SystemExit(f"{name} in data.py has {css_name!r}, which cannot be seen on black: take a lighter one.")
    colors = torch.from_numpy(matplotlib.colors.to_rgba_array(css_names)[:, :3]).float()
    distances = torch.cdist(colors, colors).fill_diagonal_(9)
    i, j = divmod(int(distances.argmin()), 10)
    if distances.min() == 0:
        raise SystemExit(f"{name} in data.py gives digits {i} and {j} the same colour: it must give each its own.")
    if distances.min() < 0.25:
        print(f"Warning: {css_names[i]} and {css_names[j]} of {name} are only {distances.min():.2f} apart in RGB.")
    return colors


# -------------------------------------------------------------------------------- images in colours


@dataclass(frozen=True)
class ColoredSet:
    """Grey images, the digit and the colour of each. No VAE or generator trains on `digits`."""

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
    """The training or the test set on the device, with its random colours.

    Exits with one sentence if `load` does, or if `check` refuses what it returned.
    """
    images, digits = load(train)
    check(images, digits)
    colors = random_colors(len(images), TRAIN_COLOR_SEED if train else TEST_COLOR_SEED)
    return ColoredSet(images.to(device), digits.to(device), colors.to(device))


def mean_level(colored: ColoredSet) -> Tensor:
    """The mean pixel of a set whose colours do not depend on its images, float32 () in [0, 1]."""
    return (colored.images.double().mean() / 255 * colored.colors.double().mean()).float()


# ----------------------------------------------------------------------------------------- drawings


def strokes() -> list[dict]:
    """330 digits in eleven designed hands: "digit", "hand" and "strokes", in a field of 400 × 400.

    They have shapes that MNIST hardly has. One author designed them before any model was tuned, and
    only their clarity to a reader decided what stayed. No model trains on them.
    """
    file = Path(__file__).with_name("datasets") / "drawings.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise SystemExit(f"{file} is missing or damaged: `git checkout {file.parent.name}` restores it.") from None


def drawings() -> tuple[Tensor, Tensor]:
    """The pictures of all strokes(), uint8 (n, 28, 28), and their digits, int64 (n,)."""
    drawn = strokes()
    return torch.stack([render(d["strokes"]) for d in drawn]), torch.tensor([d["digit"] for d in drawn])


def render(lines: list[list[list[float]]]) -> Tensor:
    """Strokes, lists of points [x, y] with y down, drawn as MNIST's are: uint8 (28, 28), ink 255.

    Their box is scaled, then moved until the centre of mass is in the middle of pixel (14, 14), as
    MNIST's is (LeCun et al. 1998). The page takes the same steps.
    """
    lines = [np.array(stroke, dtype=np.float64) for stroke in lines if stroke]
    low, high = np.concatenate(lines).min(0), np.concatenate(lines).max(0)
    scale = BOX / max(*(high - low), 1e-9)
    # Segments from start to end, each (n, 2). A lone dot is one of no length.
    start = np.concatenate([line[: max(len(line) - 1, 1)] for line in lines])
    end = np.concatenate([line[min(len(line) - 1, 1) :] for line in lines])
    start, end = ((points - (low + high) / 2) * scale + 14 for points in (start, end))
    level, middle = _rasterize(start, end), np.arange(28) + 0.5
    mass = np.array([level.sum(0) @ middle, level.sum(1) @ middle]) / level.sum()
    level = _rasterize(start + 14.5 - mass, end + 14.5 - mass)
    return torch.from_numpy(np.floor(level * 255 + 0.5).astype(np.uint8))


def _rasterize(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Segments between points (n, 2), in pixels → grey levels (28, 28) in [0, 1]."""
    middle = np.arange(28) + 0.5
    pixels = np.stack(np.meshgrid(middle, middle), -1)[:, :, None]  # (28, 28, 1, 2)
    along = end - start
    share = ((pixels - start) * along).sum(-1) / np.maximum((along**2).sum(-1), 1e-9)
    nearest = start + share.clip(0, 1)[..., None] * along  # (28, 28, n, 2)
    return (RADIUS + 0.5 - np.sqrt(((pixels - nearest) ** 2).sum(-1)).min(-1)).clip(0, 1)
