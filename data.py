"""MNIST as tensors, and the colours the digits wear.

The images stay grey uint8 in memory (47 MB); a batch is coloured on the device when it is needed:

    train = data.colored_set(train=True, device=device)
    x = data.colorize(train.images[index], train.colors[index])  # (B, 3, 28, 28) float32 in [0, 1]
"""

import gzip
import hashlib
import os
import shutil
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError

import matplotlib.colors
import torch
import torchvision
from torch import Tensor

# What to load: "MNIST", or one of torchvision's look-alikes with the same file names, "FashionMNIST" and "KMNIST".
DATASET = "MNIST"
DATA_DIR = Path(__file__).parent / "datasets"  # the files lie in DATA_DIR/DATASET/raw/

# Ranges (low, high) within [0, 1] that the random colours are drawn from. (1, 1) is pure, full colour; a wider
# VALUE makes dark digits, a wider SATURATION pale ones (at saturation 0 an image has no hue left to score).
SATURATION = (1.0, 1.0)
VALUE = (1.0, 1.0)

# The two domains of cyclegan_colors.py: the colour of each digit, 0 to 9, as CSS names. B gives digit d the colour that
# digit (d + 1) mod 10 wears in A.
DOMAIN_A = ("red", "darkorange", "yellow", "lime", "teal", "cyan", "blue", "purple", "magenta", "white")
DOMAIN_B = (*DOMAIN_A[1:], DOMAIN_A[0])

# Seeds of the random colours. The same for every run, so that all models see and are scored on the same images.
TRAIN_COLOR_SEED = 1
TEST_COLOR_SEED = 2

FILES = {  # of the training set and of the test set, as torchvision names them when extracted
    True: ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    False: ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
MD5 = {  # of the extracted files
    "MNIST": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
}


def load(train: bool) -> tuple[Tensor, Tensor]:
    """The training set or the test set: images uint8 (n, 28, 28), digits int64 (n,).

    Files already extracted are read; otherwise the .gz files beside them are extracted once; otherwise torchvision
    downloads them. Exits with one sentence where a file is missing, damaged or cannot be read.
    """
    if DATASET not in ("MNIST", "FashionMNIST", "KMNIST"):
        raise SystemExit(f"DATASET in data.py is {DATASET!r}: it must be 'MNIST', 'FashionMNIST' or 'KMNIST'.")
    dataset = getattr(torchvision.datasets, DATASET)
    raw = Path(DATA_DIR) / DATASET / "raw"
    try:
        for name in FILES[True] + FILES[False]:
            if not (raw / name).exists() and (raw / f"{name}.gz").exists():
                _extract(raw / f"{name}.gz", raw / name)
        missing = [name for name in FILES[True] + FILES[False] if not (raw / name).exists()]
        if missing:
            print(f"{missing[0]} is not in {raw}: downloading {DATASET}.")
            try:
                dataset(DATA_DIR, train=train, download=True)
            except (RuntimeError, URLError) as error:
                raise SystemExit(
                    f"{DATASET} is not in {raw} and could not be downloaded ({str(error).splitlines()[0]}): put its "
                    "four .gz files there."
                ) from None
        for name in FILES[train]:
            if (wanted := MD5.get(DATASET, {}).get(name)) and _md5(raw / name) != wanted:
                raise SystemExit(
                    f"{raw / name} is damaged or not {DATASET}'s (its MD5 is not {wanted}): delete it, and it is "
                    "extracted again from the .gz file beside it, or downloaded."
                )
        loaded = dataset(DATA_DIR, train=train)
    except OSError as error:
        raise SystemExit(f"{error.filename or raw} cannot be read or written: {error.strerror or error}.") from None
    except (RuntimeError, ValueError, AssertionError) as error:
        raise SystemExit(f"The {DATASET} files in {raw} are damaged: delete them and run again ({error}).") from None
    return loaded.data, loaded.targets.long()


def class_names() -> list[str]:
    """What figures call the ten classes of DATASET: the digits themselves for MNIST, torchvision's names for others."""
    return [str(digit) for digit in range(10)] if DATASET == "MNIST" else getattr(torchvision.datasets, DATASET).classes


def _extract(packed: Path, target: Path) -> None:
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        with gzip.open(packed) as source, open(temporary, "wb") as file:
            shutil.copyfileobj(source, file)
        wanted = MD5.get(DATASET, {}).get(target.name)
        if wanted and _md5(temporary) != wanted:
            raise EOFError
        os.replace(temporary, target)
    except (EOFError, gzip.BadGzipFile, gzip.zlib.error):
        raise SystemExit(
            f"{packed} is damaged or not {DATASET}'s: put back the original file (git checkout -- {packed.name} in its "
            "folder), or delete it to have it downloaded."
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def hsv_to_rgb(hsv: Tensor) -> Tensor:
    """Colours (..., 3): hue in degrees, saturation and value in [0, 1], to RGB in [0, 1] of the same shape.

    Smith, Color gamut transform pairs, SIGGRAPH 1978, in the closed form with one term for each channel.
    """
    hue, saturation, value = hsv.unsqueeze(-1).unbind(-2)  # each (..., 1)
    sector = (hue / 60 + hue.new_tensor([5.0, 3.0, 1.0])) % 6
    return value * (1 - saturation * torch.minimum(sector, 4 - sector).clamp(0, 1))


def rgb_to_hue(rgb: Tensor) -> Tensor:
    """RGB colours (..., 3) → hue in degrees, [0, 360]; NaN where there is none (grey, black). Inverts hsv_to_rgb."""
    high, low = rgb.amax(-1), rgb.amin(-1)
    r, g, b = rgb.unbind(-1)
    sector = torch.where(
        r == high,
        (g - b) / (high - low),
        torch.where(g == high, 2 + (b - r) / (high - low), 4 + (r - g) / (high - low)),
    )
    return (60 * sector) % 360


def random_colors(n: int, seed: int) -> Tensor:
    """n random colours, float32 (n, 3) RGB in [0, 1]: hue uniform on the wheel, the rest from SATURATION and VALUE.

    Colour i depends on (seed, i) alone: not on n, on the order of batches or on any other random state.
    """
    for name, bounds in (("SATURATION", SATURATION), ("VALUE", VALUE)):
        if not (isinstance(bounds, tuple) and len(bounds) == 2 and _ordered(0, *bounds, 1)):
            raise SystemExit(f"{name} in data.py is {bounds!r}: it must be (low, high) with 0 <= low <= high <= 1.")
    uniform = torch.rand(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    low = torch.tensor([0, SATURATION[0], VALUE[0]], dtype=torch.float64)
    high = torch.tensor([360, SATURATION[1], VALUE[1]], dtype=torch.float64)
    return hsv_to_rgb(low + (high - low) * uniform).float()


def _ordered(*values) -> bool:
    return all(type(v) in (int, float) for v in values) and list(values) == sorted(values)


def colorize(images: Tensor, colors: Tensor) -> Tensor:
    """Grey uint8 images (B, 28, 28) in RGB colours (B, 3) → float32 (B, 3, 28, 28) in [0, 1]: grey level × colour.

    The product keeps strokes anti-aliased: a half-grey pixel wears half the colour.
    """
    return (images[:, None] / 255) * colors[:, :, None, None]


def palette(name: str, css_names: tuple[str, ...]) -> Tensor:
    """The ten colours of a domain, float32 (10, 3) RGB in [0, 1]. Exits with one sentence if they are not ten."""
    if not (isinstance(css_names, tuple) and len(css_names) == 10):
        raise SystemExit(f"{name} in data.py is {css_names!r}: it must be a tuple of ten colour names, one a digit.")
    for css_name in css_names:
        if not matplotlib.colors.is_color_like(css_name):
            raise SystemExit(f"{name} in data.py names {css_name!r}, which is not a CSS colour.")
    colors = torch.tensor([matplotlib.colors.to_rgb(css_name) for css_name in css_names])
    darkest = int(colors.amax(1).argmin())
    if colors[darkest].max() < 0.1:
        raise SystemExit(
            f"{name} in data.py has {css_names[darkest]!r}, which cannot be seen on black: take a lighter one."
        )
    distances = torch.cdist(colors, colors) + 9 * torch.eye(10)
    i, j = divmod(int(distances.argmin()), 10)
    if distances.min() == 0:
        raise SystemExit(f"{name} in data.py gives digits {i} and {j} the same colour: it must give each its own.")
    if distances.min() < 0.25:
        near = f"{css_names[i]} and {css_names[j]} of {name} are only {distances.min():.2f} apart"
        print(f"Warning: {near} in RGB (black to white is 1.73): they may be taken for each other.")
    return colors


class ColoredSet(NamedTuple):
    """Grey images, the digit in each, and the colour it wears. No training looks at `digits`."""

    images: Tensor  # uint8 (n, 28, 28)
    digits: Tensor  # int64 (n,)
    colors: Tensor  # float32 (n, 3), RGB in [0, 1]

    @property
    def hues(self) -> Tensor:
        """Degrees, (n,)."""
        return rgb_to_hue(self.colors)


def colored_set(train: bool, device: torch.device) -> ColoredSet:
    """The training set or the test set on the device, with its random colours."""
    images, digits = load(train)
    colors = random_colors(len(images), TRAIN_COLOR_SEED if train else TEST_COLOR_SEED)
    return ColoredSet(images.to(device), digits.to(device), colors.to(device))


def mean_image(colored: ColoredSet) -> Tensor:
    """The mean of a set's images in their colours, float32 (3, 28, 28) in [0, 1]."""
    grey = colored.images.flatten(1) / 255  # (n, 784)
    # The sum of grey level × colour over the images is a matrix product: no coloured copy of the set is made.
    return (colored.colors.T @ grey / len(grey)).view(3, 28, 28)
