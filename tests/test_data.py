import colorsys
import gzip
import hashlib
import shutil
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torchvision

import data

REAL = data.DATA_DIR


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the gzipped files that a test may damage."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (REAL / "MNIST" / "raw").glob("*.gz"):
        shutil.copy(path, raw)
    monkeypatch.setattr(data, "DATA_DIR", tmp_path)
    return raw


def test_load():
    for train, n in ((True, 60_000), (False, 10_000)):
        images, digits = data.load(train)
        assert images.shape == (n, 28, 28) and images.dtype == torch.uint8
        assert digits.shape == (n,) and digits.dtype == torch.int64
        assert digits.unique().tolist() == list(range(10))


def test_load_extracts_once(copied):
    data.load(train=False)
    times = {path: path.stat().st_mtime_ns for path in copied.glob("*-ubyte")}
    assert {hashlib.md5(path.read_bytes()).hexdigest() for path in times} == set(data.MD5["MNIST"])
    data.load(train=True)
    assert {path: path.stat().st_mtime_ns for path in copied.glob("*-ubyte")} == times


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


def _flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_truncate, _flip_a_bit])
@pytest.mark.parametrize("packed", [True, False])
def test_a_damaged_file_is_named(copied, damage, packed):
    name = "t10k-images-idx3-ubyte"
    if not packed:
        (copied / name).write_bytes(gzip.decompress((copied / f"{name}.gz").read_bytes()))
    path = copied / (f"{name}.gz" if packed else name)
    damage(path)
    before = path.read_bytes()
    with pytest.raises(SystemExit, match=f"{path} is damaged"):
        data.load(train=False)
    assert path.read_bytes() == before
    assert not list(copied.glob("*.tmp*")) and not list(data.DATA_DIR.glob(".tmp*"))


def test_swapped_files_are_refused(copied):
    a, b = copied / "t10k-images-idx3-ubyte.gz", copied / "train-images-idx3-ubyte.gz"
    content = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(content)
    with pytest.raises(SystemExit, match="is damaged or not the original file of MNIST"):
        data.load(train=True)


def test_mnist_in_the_folder_of_another_dataset_is_refused(copied, monkeypatch):
    data.load(train=True)  # extracts
    for name in ("FashionMNIST", "KMNIST"):
        monkeypatch.setattr(data, "DATASET", name)
        shutil.copytree(copied, data.DATA_DIR / name / "raw")
        with pytest.raises(SystemExit, match=f"train-images-idx3-ubyte is damaged or not the file of {name}"):
            data.load(train=True)
        (data.DATA_DIR / name / "raw" / "train-images-idx3-ubyte").unlink()
        with pytest.raises(SystemExit, match=f"gz is damaged or not the original file of {name}"):
            data.load(train=True)


def test_a_kill_while_files_are_extracted_leaves_no_half_file(copied):
    code = f"""
import os, pathlib, data, torchvision
data.DATA_DIR = pathlib.Path({str(data.DATA_DIR)!r})
extract = torchvision.datasets.utils._decompress
def die(source, target, **options):
    pathlib.Path(target).write_bytes(b"half")
    os._exit(9)
torchvision.datasets.utils._decompress = die
data.load(train=True)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(data.__file__).parent).returncode == 9
    assert not list(copied.glob("*-ubyte"))
    assert data.load(train=False)[0].shape == (10_000, 28, 28)


def test_missing_files_without_a_network(tmp_path, monkeypatch):
    def download(self):
        raise RuntimeError("no network")

    monkeypatch.setattr(data, "DATA_DIR", tmp_path)
    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)
    with pytest.raises(SystemExit, match="could not be downloaded"):
        data.load(train=True)


@pytest.mark.parametrize("silent", [True, False])
def test_a_server_that_resets_the_connection_or_stays_silent(silent, tmp_path, monkeypatch):
    server, accepted = socket.create_server(("127.0.0.1", 0)), []

    def serve():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:  # the test is over
                return
            accepted.append(connection)
            if not silent:
                connection.recv(100)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()  # resets

    threading.Thread(target=serve, daemon=True).start()
    monkeypatch.setattr(data, "DATA_DIR", tmp_path)
    monkeypatch.setattr(data, "DATASET", "KMNIST")
    monkeypatch.setattr(data, "TIMEOUT", 0.2)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setattr(torchvision.datasets.KMNIST, "mirrors", [f"http://127.0.0.1:{server.getsockname()[1]}/"])
    with pytest.raises(SystemExit, match=r"KMNIST is not in .* and could not be downloaded \(.+\): put its four .gz"):
        data.load(train=True)
    server.close()
    assert accepted and socket.getdefaulttimeout() is None and not list(tmp_path.glob(".tmp*"))


def test_an_unknown_dataset_is_refused(monkeypatch):
    monkeypatch.setattr(data, "DATASET", "CIFAR10")
    with pytest.raises(SystemExit, match=r"DATASET in data\.py is 'CIFAR10'"):
        data.load(train=True)


def test_hue_against_the_standard_library():
    hsv = torch.rand(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rgb = torch.tensor([colorsys.hsv_to_rgb(*row) for row in hsv.tolist()], dtype=torch.float64)
    assert torch.allclose(data.rgb_to_hue(rgb), hsv[:, 0] * 360)
    assert data.rgb_to_hue(torch.tensor([[0.0, 0, 0], [0.3, 0.3, 0.3]])).isnan().all()


def test_the_parts_of_a_set_belong_together(test_set):
    part = test_set[20:50]
    assert len(test_set) == 10_000 and len(part) == 30 and torch.equal(part.digits, test_set.digits[20:50])
    index = torch.tensor([3, 0])
    assert torch.equal(part.colored(index), data.colorize(test_set.images[[23, 20]], test_set.colors[[23, 20]]))
    assert torch.equal(part.hues, test_set.hues[20:50])


def test_deform():
    x = torch.zeros(200, 1, 28, 28)
    x[:, :, 10:18, 10:18] = 1
    assert torch.allclose(data.deform(x, 0, 0, 0), x, atol=1e-5)
    torch.manual_seed(0)
    ink = data.deform(x, 3, 0, 0)
    rows = torch.arange(28.0)
    centers = (ink * rows).sum((1, 2, 3)) / ink.sum((1, 2, 3)) - 13.5  # along x
    assert centers.abs().max() < 3.01 and centers.max() > 2.8 and centers.min() < -2.8
    size = data.deform(x, 0, 0, 0.1).sum((1, 2, 3)) / 64  # grows as the scale squared
    assert 0.82 < size.min() < 0.86 and 1.18 < size.max() < 1.24
    turned, slanted = data.deform(x, 0, 45, 0), data.deform(x, 0, 0, 0, shear=0.5)
    assert (turned.amax((1, 3)) > 0.1).sum(1).max() > 9  # higher than the square
    assert torch.equal((slanted.amax((1, 3)) > 0.1).sum(1), torch.full((200,), 8))  # wider, not higher
    assert (slanted.amax((1, 2)) > 0.1).sum(1).max() > 9
    wide = data.deform(x, 0, 0, 0, stretch=0.2).sum((1, 2, 3)) / 64  # grows as the width
    assert 0.8 < wide.min() < 0.86 and 1.2 < wide.max() < 1.27
    torch.manual_seed(0)
    moved = data.deform(x, 0, 0, 0, elastic=1.0) - x
    assert moved.abs().amax((1, 2, 3)).min() > 0.1 and moved[:, :, :6].abs().max() < 0.1


def test_a_color_depends_on_seed_and_index_alone():
    colors = data.random_colors(1000, 7)
    torch.manual_seed(123)
    assert torch.equal(data.random_colors(1000, 7), colors)
    assert all(torch.equal(data.random_colors(n, 7), colors[:n]) for n in (1, 15, 16, 17, 999))
    assert (data.random_colors(1000, 8) != colors).any(1).all()
    assert data.TRAIN_COLOR_SEED != data.TEST_COLOR_SEED


def test_hues_are_uniform_and_ranges_kept(monkeypatch):
    hues = data.rgb_to_hue(data.random_colors(60_000, data.TRAIN_COLOR_SEED))
    counts = torch.histc(hues, 36, 0, 360)
    chi_square = ((counts - 60_000 / 36) ** 2 / (60_000 / 36)).sum()
    assert chi_square < 66.6  # 35 degrees of freedom: exceeded once in a thousand seeds
    colors = data.random_colors(1000, 0)
    assert torch.equal(colors.amax(1), torch.ones(1000)) and colors.amin(1).abs().max() < 1e-6
    monkeypatch.setattr(data, "SATURATION", (0.2, 0.4))
    monkeypatch.setattr(data, "VALUE", (0.5, 0.6))
    colors = data.random_colors(1000, 0)
    value, saturation = colors.amax(1), 1 - colors.amin(1) / colors.amax(1)
    assert value.min() >= 0.5 and value.max() <= 0.6 and value.max() - value.min() > 0.09
    assert saturation.min() >= 0.2 - 1e-6 and saturation.max() <= 0.4 + 1e-6


@pytest.mark.parametrize("name", ["SATURATION", "VALUE"])
@pytest.mark.parametrize("bounds", [(1, 0), (0, 2), 1, (0.5,), ("a", "b"), [0, 1], (float("nan"), 1)])
def test_impossible_ranges_are_refused(monkeypatch, name, bounds):
    monkeypatch.setattr(data, name, bounds)
    with pytest.raises(SystemExit, match=f"{name} in data.py"):
        data.random_colors(10, 0)


def test_colorize_is_grey_level_times_color(test_set):
    images, colors = test_set.images[:50], test_set.colors[:50]
    x = data.colorize(images, colors)
    assert x.shape == (50, 3, 28, 28) and x.dtype == torch.float32
    assert x[3, 2, 14, 13] == images[3, 14, 13] / 255 * colors[3, 2]
    order = torch.randperm(50)
    assert torch.equal(data.colorize(images[order], colors[order]), x[order])
    assert torch.allclose(x.amax(1), images / 255)  # at full value the brightest channel is the grey level


def test_mean_level(test_set):
    expected = data.colorize(test_set.images, test_set.colors).mean().item()
    assert data.mean_level(test_set).item() == pytest.approx(expected, rel=0.01)  # colours do not depend on images
