import colorsys
import gzip
import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from torchvision.datasets import KMNIST, MNIST

import data

RAW = data.DATA_DIR / "MNIST" / "raw"
IMAGES, LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
CPU = torch.device("cpu")


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """A copy of the test set's archives, which a test may damage."""
    monkeypatch.setattr(data, "DATA_DIR", tmp_path)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in (IMAGES, LABELS):
        shutil.copy(RAW / name, raw)
    return raw


def test_load():
    for train, n in ((True, 60_000), (False, 10_000)):
        images, digits = data.load(train)
        assert images.shape == (n, 28, 28) and images.dtype == torch.uint8
        assert digits.shape == (n,) and digits.dtype == torch.int64
        assert digits.bincount().min() > 0.08 * n and len(digits.bincount()) == 10
    assert images.numpy().tobytes() == gzip.decompress((RAW / IMAGES).read_bytes())[16:]


def test_the_archives_alone_are_read_and_nothing_is_written(raw, test_set):
    noise = torch.randint(256, (10_000, 28, 28), dtype=torch.uint8), torch.zeros(10_000, dtype=torch.int64)
    (raw.parent / "processed").mkdir()  # an old torchvision's
    for name in ("training.pt", "test.pt"):
        torch.save(noise, raw.parent / "processed" / name)
    (raw / Path(IMAGES).stem).write_bytes(bytes(16) + noise[0].numpy().tobytes())
    files = {path: path.stat().st_mtime_ns for path in raw.parent.rglob("*")}
    images, digits = data.load(train=False)
    assert torch.equal(images, test_set.images) and torch.equal(digits, test_set.digits)
    assert {path: path.stat().st_mtime_ns for path in raw.parent.rglob("*")} == files


def flip(content: bytes, i: int) -> bytes:
    return content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :]


@pytest.mark.parametrize(
    ("dataset", "damage"),
    [
        ("MNIST", lambda packed: packed[:-1000]),
        ("MNIST", lambda packed: flip(packed, 99_000)),
        ("MNIST", lambda packed: gzip.compress(flip(gzip.decompress(packed), 99_000), 1)),
        ("MNIST", lambda packed: flip(packed, 40)),
        ("MNIST", lambda packed: b""),
        ("MNIST", lambda packed: (RAW / LABELS).read_bytes()),
        ("FashionMNIST", lambda packed: packed),
        ("KMNIST", lambda packed: packed),
    ],
)
def test_a_damaged_or_foreign_archive_is_refused_and_kept(raw, monkeypatch, dataset, damage):
    monkeypatch.setattr(data, "DATASET", dataset)
    raw = raw.parent.rename(data.DATA_DIR / dataset) / "raw"
    damaged = damage((raw / IMAGES).read_bytes())
    (raw / IMAGES).write_bytes(damaged)
    sentence = rf"^{raw / IMAGES} is damaged or not the original file of {dataset}: [^.]+\.$"
    with pytest.raises(SystemExit, match=sentence):
        data.load(train=False)
    assert {path.name for path in raw.iterdir()} == {IMAGES, LABELS} and (raw / IMAGES).read_bytes() == damaged


def test_missing_archives(raw, monkeypatch, test_set):
    (raw / LABELS).unlink()
    with pytest.raises(SystemExit, match=rf"^{raw / LABELS} cannot be read .*\(No such file or directory\): [^.]+\.$"):
        data.load(train=False)
    monkeypatch.setattr(data, "DATASET", "KMNIST")
    monkeypatch.setattr(KMNIST, "resources", MNIST.resources)
    monkeypatch.setattr(KMNIST, "mirrors", ["file:///no_network/"])
    with pytest.raises(SystemExit, match=rf"{IMAGES} cannot be read or downloaded \(<urlopen error .*\): put it there"):
        data.load(train=False)
    assert [path for path in data.DATA_DIR.rglob("*") if path.is_file()] == [raw / IMAGES]

    def download_url(url, root, filename, md5):
        root.mkdir(parents=True, exist_ok=True)
        shutil.copy(RAW / url.rpartition("/")[2], root / filename)

    monkeypatch.setattr(data, "download_url", download_url)
    assert torch.equal(data.load(train=False)[0], test_set.images)
    assert {path.name for path in (data.DATA_DIR / "KMNIST" / "raw").iterdir()} == {IMAGES, LABELS}


def test_an_archive_compressed_anew_is_read(raw, monkeypatch, test_set):
    content = gzip.decompress((raw / IMAGES).read_bytes())
    (raw / IMAGES).write_bytes(gzip.compress(content, 1))
    monkeypatch.setitem(data.CONTENT_MD5, dict(MNIST.resources)[IMAGES], hashlib.md5(content).hexdigest())
    assert torch.equal(data.load(train=False)[0], test_set.images)


def test_an_unknown_dataset_is_refused(monkeypatch):
    monkeypatch.setattr(data, "DATASET", "CIFAR10")
    with pytest.raises(SystemExit, match=r"DATASET in data\.py is 'CIFAR10'"):
        data.load(train=True)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda x, y: (x / 255, y), r"images torch.float32 \(10000, 28, 28\)"),
        (lambda x, y: (x[:, None], y), r"\(10000, 1, 28, 28\)"),
        (lambda x, y: (x[:, None], y[:, None]), r"digits torch.int64 \(10000, 1\)"),
        (lambda x, y: (x, y.int()), "digits torch.int32"),
        (lambda x, y: (x[y < 5], y[y < 5]), r"digits \[0, 1, 2, 3, 4\]: it must return some of each"),
        (lambda x, y: (x, y + 1), r"digits \[1, 2, 3, 4, 5, 6, 7, 8, 9, 10\]"),
    ],
)
def test_images_of_another_kind_are_refused(monkeypatch, test_set, change, found):
    monkeypatch.setattr(data, "load", lambda train: change(test_set.images, test_set.digits))
    with pytest.raises(SystemExit, match=rf"^data\.load returned .*{found}"):
        data.colored_set(train=False, device=CPU)


def test_hue_against_the_standard_library():
    hsv = torch.rand(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rgb = torch.tensor([colorsys.hsv_to_rgb(*row) for row in hsv.tolist()], dtype=torch.float64)
    assert torch.allclose(data.rgb_to_hue(rgb), hsv[:, 0] * 360)
    assert data.rgb_to_hue(torch.tensor([[0.0, 0, 0], [0.3, 0.3, 0.3]])).isnan().all()


def test_the_parts_of_a_set_belong_together(test_set):
    part, index = test_set[20:50], torch.tensor([3, 0])
    assert len(test_set) == 10_000 and len(part) == 30 and torch.equal(part.digits, test_set.digits[20:50])
    assert torch.equal(part.colored(index), data.colorize(test_set.images[[23, 20]], test_set.colors[[23, 20]]))
    assert torch.equal(part.hues, test_set.hues[20:50])


def test_deform():
    x = torch.zeros(200, 1, 28, 28)
    x[:, :, 10:18, 10:18] = 1
    assert torch.allclose(data.deform(x, 0, 0, 0), x, atol=1e-5)
    torch.manual_seed(0)
    ink = data.deform(x, 3, 0, 0)
    centers = (ink * torch.arange(28.0)).sum((1, 2, 3)) / ink.sum((1, 2, 3)) - 13.5  # along x
    assert centers.abs().max() < 3.01 and centers.max() > 2.8 and centers.min() < -2.8
    size = data.deform(x, 0, 0, 0.1).sum((1, 2, 3)) / 64  # grows as the scale squared
    assert 0.82 < size.min() < 0.86 and 1.18 < size.max() < 1.24
    turned = data.deform(x, 0, 45, 0)
    assert (turned.amax((1, 3)) > 0.1).sum(1).max() > 9  # higher than the square
    none, half = torch.zeros(200), torch.full((200,), 0.5)
    slanted, wide = data.restyle(x, half, none, none), data.restyle(x, none, half, none)
    assert ((slanted.amax((1, 3)) > 0.1).sum(1) == 8).all()  # wider, not higher
    assert (slanted.amax((1, 2)) > 0.1).sum(1).max() > 9
    assert torch.allclose(wide.sum((1, 2, 3)) / 64, half.exp(), rtol=0.02)  # grows as the width
    assert (data.restyle(x, none, none, half) - x).sum() > 0
    torch.manual_seed(0)
    moved = data.deform(x, 0, 0, 0, elastic=1.0) - x
    assert moved.abs().amax((1, 2, 3)).min() > 0.1 and moved[:, :, :6].abs().max() < 0.1


def test_a_color_depends_on_seed_and_index_alone():
    colors = data.random_colors(1000, 7)
    torch.manual_seed(123)
    assert all(torch.equal(data.random_colors(n, 7), colors[:n]) for n in (1, 15, 16, 17, 999, 1000))
    assert (data.random_colors(1000, 8) != colors).any(1).all()
    assert data.TRAIN_COLOR_SEED != data.TEST_COLOR_SEED


def test_hues_are_uniform_and_ranges_kept(monkeypatch):
    hues = data.rgb_to_hue(data.random_colors(60_000, data.TRAIN_COLOR_SEED))
    counts = torch.histc(hues, 36, 0, 360)
    chi_square = ((counts - 60_000 / 36) ** 2 / (60_000 / 36)).sum()
    assert chi_square < 66.6  # 35 degrees of freedom: exceeded once in a thousand seeds
    colors = data.random_colors(1000, 0)
    assert (colors.amax(1) == 1).all() and colors.amin(1).abs().max() < 1e-6
    monkeypatch.setattr(data, "SATURATION", (0.2, 0.4))
    monkeypatch.setattr(data, "VALUE", (0.5, 0.6))
    colors = data.random_colors(1000, 0)
    value, saturation = colors.amax(1), 1 - colors.amin(1) / colors.amax(1)
    assert value.min() >= 0.5 and value.max() <= 0.6 and value.max() - value.min() > 0.09
    assert saturation.min() >= 0.2 - 1e-6 and saturation.max() <= 0.4 + 1e-6


@pytest.mark.parametrize("bounds", [(1, 0), (0, 2), 1, (0.5,), ("a", "b"), [0, 1], (float("nan"), 1)])
def test_impossible_ranges_are_refused(monkeypatch, bounds):
    for name in ("SATURATION", "VALUE"):
        with monkeypatch.context() as patch, pytest.raises(SystemExit, match=f"{name} in data.py is .* 0 <= low"):
            patch.setattr(data, name, bounds)
            data.random_colors(10, 0)


def test_colorize_is_grey_level_times_color_in_any_order(test_set):
    images, colors = test_set.images[:50], test_set.colors[:50]
    x = data.colorize(images, colors)
    assert x.shape == (50, 3, 28, 28) and x.dtype == torch.float32
    assert x[3, 2, 14, 13] == images[3, 14, 13] / 255 * colors[3, 2]
    order = torch.randperm(50)
    assert torch.equal(data.colorize(images[order], colors[order]), x[order])
    assert torch.equal(test_set.colored(order), x[order])
    assert torch.allclose(x.amax(1), images / 255)  # the grey level at full value


def test_mean_level(test_set):
    expected = data.colorize(test_set.images, test_set.colors).mean().item()
    assert data.mean_level(test_set).item() == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("names", "words"),
    (
        (data.DOMAIN_A[:9], "tuple of ten"),
        (("nocolour", *data.DOMAIN_A[1:]), "not a CSS colour"),
        (("#010101", *data.DOMAIN_A[1:]), "cannot be seen"),
        (("cyan", *data.DOMAIN_A[1:]), "same colour"),
    ),
)
def test_a_palette_is_ten_visible_colours(names, words):
    with pytest.raises(SystemExit, match=words):
        data.palette("DOMAIN_A", names)


def test_drawings_are_rendered_as_mnists_digits_are(monkeypatch, tmp_path):
    images, digits = data.drawings()
    assert images.shape == (330, 28, 28) and digits.bincount().tolist() == [33] * 10
    ink, middle = images.double(), torch.arange(28.0, dtype=torch.float64)
    for axis in (1, 2):
        mass = (ink.sum(axis) * middle).sum(1) / ink.sum((1, 2))
        assert (mass - 14).abs().max() < 0.2
    extent = torch.maximum((images.amax(1) > 128).sum(1), (images.amax(2) > 128).sum(1))
    assert extent.min() >= 20 and extent.max() <= 21
    assert data.render([[[5, 5]]]).sum() > 0  # a dot
    monkeypatch.setattr(data, "__file__", str(tmp_path / "data.py"))
    with pytest.raises(SystemExit, match=r"drawings\.json is missing or damaged"):
        data.drawings()
