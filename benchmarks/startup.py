"""From starting vae_joint.py to its first training step, beside importing torch alone.

python -m benchmarks.startup
"""

import statistics
import subprocess
import sys
import tempfile
import time

import runs

REPEATS = 5
CODES = {
    "import torch, torchvision": "import torch, torchvision",
    "vae_joint.py to its first step": """
import os, pathlib, sys
sys.path.insert(0, "")
import vae_joint
vae_joint.OUTPUT_DIR = pathlib.Path(sys.argv[1])
vae_joint.tqdm = lambda batches, *args, **options: (os._exit(0) if i else batch for i, batch in enumerate(batches))
vae_joint.main()
""",
}


def seconds(code: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code, folder], cwd=runs.ROOT, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - started


def main() -> None:
    times = {name: [] for name in CODES}
    for _ in range(REPEATS + 1):
        for name, code in CODES.items():
            times[name].append(seconds(code))
    for name, values in times.items():  # the first repeat fills the disk's cache and is left out
        print(f"{name}: {statistics.median(values[1:]):.1f} s ({min(values[1:]):.1f} to {max(values[1:]):.1f})")
    alone, script = times.values()
    print(f"above the imports: {statistics.median(b - a for a, b in zip(alone[1:], script[1:], strict=True)):.1f} s")


if __name__ == "__main__":
    runs.command(main)
