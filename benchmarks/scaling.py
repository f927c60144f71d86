"""How the time of an epoch of vae_joint.py grows with the number of images, and with the batch size.

python -m benchmarks.scaling
"""

import contextlib
import io
import json
import statistics
import tempfile
from pathlib import Path

import data
import vae_joint
from benchmarks import timing

IMAGES = (15_000, 30_000, 60_000)
BATCH_SIZES = (30, 120, 480)
REPEATS = 3


def epoch_seconds(images: int, batch_size: int) -> float:
    """Seconds of an epoch, with its pass over 1,000 test images and its checkpoint, as the history tells them."""
    load, before = data.load, {name: getattr(vae_joint, name) for name in ("OUTPUT_DIR", "EPOCHS", "BATCH_SIZE")}
    data.load = lambda train: tuple(part[: images if train else 1000] for part in load(train))
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            vae_joint.OUTPUT_DIR, vae_joint.EPOCHS, vae_joint.BATCH_SIZE = Path(folder), 1, batch_size
            with contextlib.redirect_stdout(io.StringIO()):
                vae_joint.main()
            return json.loads((Path(folder) / "metrics.json").read_text())["history"][0]["seconds"]
    finally:
        data.load = load
        for name, value in before.items():
            setattr(vae_joint, name, value)


def main() -> None:
    for title, cases in (
        ("images", {n: (n, 120) for n in IMAGES}),
        ("batch size", {b: (60_000, b) for b in BATCH_SIZES}),
    ):
        functions = {key: lambda case=case: epoch_seconds(*case) for key, case in cases.items()}
        values = timing.repeated(functions, REPEATS)
        first = next(iter(values))
        print(f"\nvae_joint.py, an epoch by {title}:")
        for key, seconds in values.items():
            ratios = [a / b for a, b in zip(seconds, values[first], strict=True)]
            print(f"{key:6d}: {statistics.median(seconds):5.1f} s, {statistics.median(ratios):.2f} of the first")


if __name__ == "__main__":
    main()
