"""What a run needs around its training loop: constants, device, checkpoints, a results file.

with runs.start(OUTPUT_DIR, globals()) as run:
    ...
    history = run.resume(model=model, optimizer=optimizer)
    for epoch in range(len(history) + 1, EPOCHS + 1):
        ...
        run.checkpoint(history)
    run.finish(results, history)
"""

import contextlib
import ctypes
import importlib.metadata
import io
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import torch
from torch import Tensor

import data


def _whole(low: int, below: float = math.inf):
    return lambda v: type(v) is int and low <= v < below, f"a whole number, {low} or more"


def _number(accepts, sentence: str):
    return lambda v: type(v) in (int, float) and math.isfinite(v) and accepts(v), f"a number {sentence}"


def _choice(*values):
    return (
        lambda v: type(v) is type(values[0]) and v in values,
        f"{', '.join(map(repr, values[:-1]))} or {values[-1]!r}",
    )


def _request(request) -> bool:
    digit, hue = request if type(request) is tuple and len(request) == 2 else (None, None)
    return digit in range(10) and type(hue) in (int, float) and 0 <= hue < 360


# The constants that scripts share by name: what is accepted, and how to say so.
RULES = {
    "SEED": _whole(0, below=2**63),
    "N_CATEGORIES": _whole(2),
    **dict.fromkeys(
        (
            "EPOCHS",
            "BATCH_SIZE",
            "IMAGES_PER_EPOCH",
            "R1_EVERY",
            "LATENT_DIM",
            "N_VARIABLES",
            "N_STARTS",
            "START_EPOCHS",
        ),
        _whole(1),
    ),
    **dict.fromkeys(
        ("LEARNING_RATE", "TAU_START", "TAU_MIN", "Z_VARIANCE", "STEP"), _number(lambda v: v > 0, "above 0")
    ),
    **dict.fromkeys(("TAU_DECAY", "BETA", "R1_WEIGHT", "CYCLE_WEIGHT"), _number(lambda v: v >= 0, "of 0 or more")),
    **dict.fromkeys(
        ("DIGIT_WEIGHT", "AGREEMENT_WEIGHT", "BALANCE_WEIGHT", "KNOB_WEIGHT"), _number(lambda v: v >= 0, "of 0 or more")
    ),
    **dict.fromkeys(("MAX_SHIFT", "MAX_ROTATION", "MAX_SHEAR", "ELASTIC"), _number(lambda v: v >= 0, "of 0 or more")),
    **dict.fromkeys(("BETA1", "MAX_SCALE", "MAX_STRETCH"), _number(lambda v: 0 <= v < 1, "of 0 or more, below 1")),
    "DECAY_FROM": _number(lambda v: 0 <= v <= 1, "from 0 to 1"),
    **dict.fromkeys(("HARD", "RESUME", "START_AT_MEAN", "HE_WEIGHTS"), _choice(True, False)),
    "PRECISION": _choice("auto", "bfloat16", "float32"),
    "MATMUL_PRECISION": _choice("medium", "highest"),
    "DEVICE": _choice("auto", "cpu", "cuda", "mps"),
    "REQUESTS": (
        lambda v: type(v) is tuple and v and all(map(_request, v)),
        "a tuple of requests, each (digit 0 to 9, hue in degrees from 0, below 360)",
    ),
}


# ------------------------------------------------------------------------------------------------ a run


def constants(namespace: dict, data_constants: tuple[str, ...] = data.RANDOM_COLORS) -> dict:
    """The UPPERCASE literals of a script (pass `globals()`), after the constants of data.py with these names."""
    literal = bool | int | float | str | tuple
    own = [
        name for name, value in namespace.items() if name in RULES or (name.isupper() and isinstance(value, literal))
    ]
    return {name: getattr(data, name) for name in data_constants} | {name: namespace[name] for name in own}


def start(folder: Path, namespace: dict, data_constants: tuple[str, ...] = data.RANDOM_COLORS) -> "Run":
    """Checks the constants of a script (pass `globals()`), reserves the output folder, prints the head of the log.

    `data_constants` names those of data.py that decide what the script sees. Exits with one sentence if a constant is
    out of range, or if the folder cannot be written or another run is writing there.
    """
    values = constants(namespace, data_constants)
    for name, value in values.items():
        accepts, sentence = RULES.get(name, (lambda v: True, ""))
        if not accepts(value):
            raise SystemExit(f"{name} is {value!r}: it must be {sentence}.")
    if values.get("TAU_MIN", 0) > values.get("TAU_START", 0):
        raise SystemExit(f"TAU_MIN is {values['TAU_MIN']}: it must not exceed TAU_START, {values['TAU_START']}.")
    run = Run(Path(folder), values, _device(values.get("DEVICE", "auto")))
    print(*(f"{name} = {value!r}" for name, value in values.items()), sep="\n")
    print(", ".join(f"{name} {value}" for name, value in versions(run.device, values).items()), flush=True)
    return run


class Run:
    """One run of a script, as a context: its folder, its constants, its device and its clock.

    At the end of the block the folder is free for other runs, and torch's settings are what they were.
    """

    def __init__(self, folder: Path, constants: dict, device: torch.device):
        self.folder, self.constants, self.device = folder, constants, device
        self._lock = _lock(folder)
        self._matmul_precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(constants.get("MATMUL_PRECISION", "highest"))
        keep_freed_memory()
        self._started, self._seconds_before = time.perf_counter(), 0.0
        self._parts, self._last_loss, self._saved_epoch = {}, math.nan, 0

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback) -> None:
        torch.set_float32_matmul_precision(self._matmul_precision)
        release_freed_memory()
        self._lock.release()
        if isinstance(error, KeyboardInterrupt):
            saved = "the last whole epoch is saved, run again to go on"
            print(f"\nStopped: {saved if self._saved_epoch else 'no epoch was finished or saved'}.", file=sys.stderr)
            raise SystemExit(130) from None  # a shell's status for a program that was interrupted

    def seconds(self) -> float:
        """Since the start of the run. The part of it that was interrupted counts up to its last checkpoint."""
        return self._seconds_before + time.perf_counter() - self._started

    def check_batch_size(self, batch_size: int, n: int) -> None:
        """Exits with one sentence if a batch would need more than the n training images."""
        if batch_size > n:
            raise SystemExit(f"BATCH_SIZE is {batch_size}: it must not exceed the {n} training images of an epoch.")

    def autocast(self) -> torch.autocast:
        """A context in which convolutions and matrix products are computed as PRECISION says; weights stay float32."""
        dtype = precision(self.constants["PRECISION"], self.device)
        enabled = dtype == torch.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled, cache_enabled=False)

    def check_finite(self, loss: float, step: int) -> None:
        """Ends the run with one sentence at the first loss that is not finite."""
        if not math.isfinite(loss):
            epoch = self._saved_epoch + 1
            before = f" (it was {self._last_loss:.6g} a step before)" if math.isfinite(self._last_loss) else ""
            kept = f" The checkpoint of epoch {epoch - 1} is kept." if epoch > 1 else ""
            what = f"The loss became {loss} in epoch {epoch}, step {step}{before}"
            raise SystemExit(f"{what}: try a lower LEARNING_RATE.{kept}")
        self._last_loss = loss

    def print_epoch(self, history: list[dict], floors: dict[str, float]) -> None:
        """One aligned line for the last epoch of a VAE: nats per image, reconstruction above the pixel entropy.

        `floors`: the pixel entropy of the "train" and of the "test" images.
        """
        row, epochs = history[-1], self.constants["EPOCHS"]
        parts = [f"epoch {row['epoch']:{len(str(epochs))}d}/{epochs}"]
        for part, floor in floors.items():
            kl = "".join(
                f"  {name} {row[f'{part}_{name}']:6.2f}" for name in ("kl_z", "kl_v") if f"{part}_{name}" in row
            )
            parts.append(f"{part}: reconstruction above floor {row[f'{part}_reconstruction'] - floor:7.2f}{kl}")
        seconds = row["seconds"] - (history[-2]["seconds"] if len(history) > 1 else 0)
        tau = f"tau {row['tau']:.2f}  " if "tau" in row else ""
        left = seconds * (epochs - row["epoch"]) / 60
        print(*parts, f"{tau}{seconds:5.1f} s  {left:4.1f} min left", sep=" | ", flush=True)

    # ---------------------------------------------------------------------------------- going on after a stop

    def resume(self, **parts) -> list[dict]:
        """The history of an unfinished run with the same constants, whose state is put back into `parts`; or [].

        `parts` are modules, optimizers and schedules: all that the next epoch depends on. Says whether the run goes on,
        and if not, why. Call it after everything else that draws random numbers before the first epoch.
        """
        self._parts, path = parts, self.folder / "checkpoint.pt"
        if not self.constants.get("RESUME", True) or not path.exists():
            return []
        saved = load_torch(path)
        try:
            before, now = json.loads(saved["constants"]), json.loads(json.dumps(self.constants))
            if name := first_difference(before, now):
                was, is_ = before.get(name), now.get(name)
                print(f"Starting afresh: {name} was {was!r} in the unfinished run, and is {is_!r}.")
                return []
            for name, part in parts.items():
                part.load_state_dict(saved["states"][name])
            torch.set_rng_state(saved["rng"]["cpu"])
            if self.device.type in saved["rng"] and self.device.type != "cpu":
                torch.get_device_module(self.device).set_rng_state(saved["rng"][self.device.type])
            history = list(saved["history"])
            self._seconds_before = history[-1]["seconds"] - self.seconds()
            self._saved_epoch = history[-1]["epoch"]
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError):
            raise SystemExit(f"{path} is not a checkpoint of this script: delete it and run again.") from None
        print(f"Going on after epoch {self._saved_epoch} of the unfinished run with the same constants.")
        return history

    def checkpoint(self, history: list[dict]) -> None:
        """Saves the state of the parts that `resume` was given. `history` has a row for each finished epoch."""
        rng = {"cpu": torch.get_rng_state()}
        if self.device.type != "cpu":
            rng[self.device.type] = torch.get_device_module(self.device).get_rng_state()
        states = {name: part.state_dict() for name, part in self._parts.items()}
        content = {"constants": json.dumps(self.constants), "history": history, "rng": rng, "states": states}
        save_torch(self.folder / "checkpoint.pt", content)
        self._saved_epoch = history[-1]["epoch"]

    def finish(self, results: dict, history: list[dict]) -> None:
        """Writes metrics.json, prints the results and where the files are, and deletes the checkpoint."""
        content = {"constants": self.constants, "versions": versions(self.device, self.constants)}
        content |= {"seconds": round(self.seconds(), 1), "results": results, "history": history}
        with atomic_write(self.folder / "metrics.json") as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n")
        (self.folder / "checkpoint.pt").unlink(missing_ok=True)
        width = max(map(len, results))
        print("", *(f"{name:{width}}  {_readable(value)}" for name, value in results.items()), sep="\n")
        print(f"\n{self.seconds() / 60:.1f} minutes. Figures and metrics.json are in {self.folder}")


def first_difference(before: dict, now: dict) -> str | None:
    """The name of a constant that decides a run's numbers and differs. RESUME does not."""
    names = [name for name in now | before if name != "RESUME" and now.get(name) != before.get(name)]
    return names[0] if names else None


def _readable(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_readable(part)}" for name, part in value.items())
    if isinstance(value, list):
        return "  ".join(map(_readable, value))
    return f"{value:.4f}" if isinstance(value, float) else str(value)


# ------------------------------------------------------------------------------------ machine and folder


def versions(device: torch.device, constants: dict) -> dict[str, str]:
    """What the numbers of a run with these constants may depend on besides them."""
    own = {"device": str(device), "threads": str(torch.get_num_threads()), "machine": _machine()}
    if "PRECISION" in constants:
        own["precision"] = str(precision(constants["PRECISION"], device)).removeprefix("torch.")
    packages = ("torch", "torchvision", "numpy", "matplotlib")
    return own | {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def _machine() -> str:
    with contextlib.suppress(OSError):  # Linux; elsewhere the platform module knows as much as there is
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':')[1].strip()} {platform.machine()}"
    return platform.processor() or platform.machine()


def _device(name: str) -> torch.device:
    available = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    if name not in ("auto", "cpu", available.type):
        raise SystemExit(f"DEVICE is {name!r}, which this machine or this build of torch does not have: try 'auto'.")
    return available if name == "auto" else torch.device(name)


def precision(name: str, device: torch.device) -> torch.dtype:
    """What a PRECISION stands for: "auto" is bfloat16 on a CPU that torch knows to be fast at it, float32 elsewhere."""
    known = getattr(torch.cpu, "get_capabilities", dict)()  # not in every version of torch
    fast = device.type == "cpu" and (known.get("avx512_bf16", False) or known.get("amx_bf16", False))
    if name == "auto":
        name = "bfloat16" if fast else "float32"
    return getattr(torch, name)


def _lock(folder: Path) -> filelock.FileLock:
    """Reserves a folder for this run until the lock is released or the process ends, however it ends."""
    lock = filelock.FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # can files be made there?
        lock.acquire()
    except filelock.Timeout:
        raise SystemExit(f"Another run is writing to {folder}: wait for it to end, or stop it.") from None
    except NotImplementedError:
        pass  # a file system without locks
    except OSError as error:
        raise SystemExit(f"{folder} cannot be written: {error.strerror}.") from None
    return lock


def keep_freed_memory() -> None:
    """Makes this process keep the memory it frees, where the C library is glibc (Linux). Elsewhere does nothing.

    A training step frees what the next one needs. Returning it to the system and taking it again page by page costs
    time in every step, most of all on a virtual machine.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no such library, no such function
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD, bytes: how much free memory is kept before some is returned
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, bytes: larger blocks are returned at once; this is its maximum


def release_freed_memory() -> None:
    """Ends keep_freed_memory and returns what was kept: for when blocks of other sizes are needed next."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 2**17)  # the default threshold: what the scores need for a moment is returned at once
        libc.malloc_trim(0)


# --------------------------------------------------------------------------------------------------- files


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary name in the same folder. The file written there replaces `path` when the block ends.

    A run that dies in between leaves the old file. Exits with one sentence if the disk refuses.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.stem}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise SystemExit(f"{path} could not be written ({error.strerror}); what was there is unchanged.") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def save_torch(path: Path, value: Any) -> None:
    """torch.save, as an atomic write."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_torch(path: Path) -> Any:
    """What save_torch wrote, on the CPU. No code in the file is ever run. Exits with one sentence if it is not that."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise SystemExit(f"{path} is not there: run the script that writes it first.") from None
    except Exception:
        raise SystemExit(f"{path} is damaged or was not written by this project: delete it and run again.") from None


def save_model(path: Path, model: torch.nn.Module, *sizes: int) -> None:
    """The weights of `model`, with its class's name and the sizes it is constructed from."""
    weights: dict[str, Tensor] = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
    save_torch(path, {"class": type(model).__name__, "sizes": list(sizes), "weights": weights})


def load_model(path: Path, cls: type) -> torch.nn.Module:
    """The `cls` that save_model wrote to `path`, on the CPU, in eval mode. Exits with one sentence if it is another."""
    saved = load_torch(path)
    if not isinstance(saved, dict) or saved.get("class") != cls.__name__:
        raise SystemExit(f"{path} does not hold a {cls.__name__}: delete it, or name the right file.")
    try:
        model = cls(*saved["sizes"])
        model.load_state_dict(saved["weights"])
    except (KeyError, TypeError, RuntimeError):
        raise SystemExit(f"{path} holds a {cls.__name__} of other sizes or version: train it again.") from None
    return model.eval()
