"""Peak memory of each script: a run of one epoch with scores and figures, in a process of its own.

    python -m benchmarks.memory

The peak comes from the system's resource usage, which Windows does not have.
"""

import subprocess
import sys
import tempfile

import runs

CODE = """
import pathlib, resource, sys
sys.path.insert(0, "")
import {script} as script
script.OUTPUT_DIR, script.EPOCHS = pathlib.Path(sys.argv[1]), 1
script.main()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak * (1 if sys.platform == "darwin" else 1024))
"""


def main() -> None:
    for script in ("vae_continuous", "vae_discrete", "vae_joint", "cyclegan_colors"):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-c", CODE.format(script=script), folder]
            ended = subprocess.run(command, cwd=runs.ROOT, check=True, stdout=subprocess.PIPE, text=True)
        print(f"{script}: {int(ended.stdout.splitlines()[-1]) / 1e9:.2f} GB", flush=True)


if __name__ == "__main__":
    runs.command(main)
