"""How the time of an epoch of vae_joint.py grows with the images, and with the batch size.

python -m benchmarks.scaling
"""

import statistics

import runs
import vae_joint
from benchmarks import timing

IMAGES = (15_000, 30_000, 60_000)
BATCH_SIZES = (30, 120, 480)
REPEATS = 3


def epoch_seconds(images: int, batch_size: int) -> float:
    """Seconds of the training steps of an epoch but the first."""
    stamps = timing.first_epoch(vae_joint, images=images, BATCH_SIZE=batch_size)
    return stamps[-2] - stamps[0]


def main() -> None:
    for title, cases in (
        ("images", {n: (n, 120) for n in IMAGES}),
        ("batch size", {b: (60_000, b) for b in BATCH_SIZES}),
    ):
        functions = {key: lambda case=case: epoch_seconds(*case) for key, case in cases.items()}
        values = timing.repeated(functions, REPEATS, title)
        first = next(iter(values))
        print(f"\nvae_joint.py, an epoch by {title}:")
        for key, seconds in values.items():
            ratios = [a / b for a, b in zip(seconds, values[first], strict=True)]
            print(f"{key:6d}: {statistics.median(seconds):5.1f} s, {statistics.median(ratios):.2f} of the first")


if __name__ == "__main__":
    runs.command(main)
