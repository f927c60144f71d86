"""What a run needs around its training loop: constants, device, checkpoints, and files that are written whole."""

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import data


def _whole(low: int, below: float = math.inf):
    return lambda v: type(v) is int and low <= v < below, f"a whole number, {low} or more"


def _number(low: float, included: bool = False):
    sentence = f"a number of {low} or more" if included else f"a number above {low}"
    return (
        lambda v: type(v) in (int, float) and math.isfinite(v) and (v > low or (included and v == low)),
        sentence,
    )


def _request(digit, hue) -> bool:
    return digit in range(10) and type(hue) in (int, float) and 0 <= hue < 360


_SWITCH = (lambda v: type(v) is bool, "True or False")

# The constants that scripts share by name: what is accepted, and how to say so.
RULES = {
    "SEED": _whole(0, below=2**63),
    "EPOCHS": _whole(1),
    "BATCH_SIZE": _whole(1),
    "LEARNING_RATE": _number(0),
    "LATENT_DIM": _whole(1),
    "N_VARIABLES": _whole(1),
    "N_CATEGORIES": _whole(2),
    "TAU_START": _number(0),
    "TAU_DECAY": _number(0, included=True),
    "TAU_MIN": _number(0),
    "HARD": _SWITCH,
    "BETA": _number(0, included=True),
    "Z_VARIANCE": _number(0),
    "STEP": _number(0),
    "REQUESTS": (
        lambda v: type(v) is tuple and v and all(type(r) is tuple and len(r) == 2 and _request(*r) for r in v),
        "a tuple of requests, each (digit 0 to 9, hue in degrees from 0, below 360)",
    ),
    "RESUME": _SWITCH,
    "START_AT_MEAN": _SWITCH,
    "HE_WEIGHTS": _SWITCH,
    "R1_WEIGHT": _number(0, included=True),
    "R1_EVERY": _whole(1),
    "BETA1": (lambda v: type(v) in (int, float) and 0 <= v < 1, "a number of 0 or more, below 1"),
    "CYCLE_WEIGHT": _number(0, included=True),
    "IMAGES_PER_EPOCH": _whole(1),
    "DECAY_FROM": (lambda v: type(v) in (int, float) and 0 <= v <= 1, "a share from 0 to 1"),
    "PRECISION": (lambda v: v in ("auto", "bfloat16", "float32"), "'auto', 'bfloat16' or 'float32'"),
    "MATMUL_PRECISION": (lambda v: v in ("medium", "highest"), "'medium' or 'highest'"),
    "DEVICE": (lambda v: v in ("auto", "cpu", "cuda", "mps"), "'auto', 'cpu', 'cuda' or 'mps'"),
}


# ------------------------------------------------------------------------------------------ before training


RANDOM_COLORS = ("DATASET", "SATURATION", "VALUE", "TRAIN_COLOR_SEED", "TEST_COLOR_SEED")


def constants(namespace: dict) -> dict:
    """The UPPERCASE literals of a script (pass `globals()`), after those of data.py that decide what it sees.

    The latter are those of the random colours, unless the script names others as `constants_of_data`.
    """
    of_data = namespace.get("constants_of_data", RANDOM_COLORS)
    own = {
        name: value
        for name, value in namespace.items()
        if name in RULES or (name.isupper() and isinstance(value, bool | int | float | str | tuple))
    }
    return {name: getattr(data, name) for name in of_data} | own


def begin(output_dir: Path, constants: dict) -> torch.device:
    """Checks the constants, takes the output folder for this run, prints the head of the log; returns the device.

    Exits with one sentence if a constant is out of range, or if the folder cannot be written or is another run's.
    """
    for name, value in constants.items():
        accepts, sentence = RULES.get(name, (lambda v: True, ""))
        if not accepts(value):
            raise SystemExit(f"{name} is {value!r}: it must be {sentence}.")
    if constants.get("TAU_MIN", 0) > constants.get("TAU_START", 0):
        raise SystemExit(f"TAU_MIN is {constants['TAU_MIN']}: it must not exceed TAU_START, {constants['TAU_START']}.")
    device = _device(constants.get("DEVICE", "auto"))
    _take(Path(output_dir))
    keep_freed_memory()
    sys.excepthook = _one_line_on_interrupt
    _saved.clear()
    print(*(f"{name} = {value!r}" for name, value in constants.items()), sep="\n")
    print(", ".join(f"{name} {value}" for name, value in versions(device, constants).items()))
    return device


def versions(device: torch.device, constants: dict) -> dict[str, str]:
    """What the numbers of a run with these constants may depend on besides them."""
    packages = {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "numpy", "matplotlib")}
    of_device = {"device": str(device), "threads": str(torch.get_num_threads()), "machine": _machine()}
    if "PRECISION" in constants:
        of_device["precision"] = str(precision(constants["PRECISION"], device)).removeprefix("torch.")
    if "MATMUL_PRECISION" in constants:
        rounded = products_are_rounded(constants["MATMUL_PRECISION"], device)
        of_device["matrix products in"] = "float32 of rounded factors" if rounded else "float32"
    return of_device | {"python": platform.python_version(), **packages}


def _machine() -> str:
    with contextlib.suppress(OSError):  # Linux; elsewhere the platform module knows as much as it can
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':')[1].strip()} {platform.machine()}"
    return platform.processor() or platform.machine()


def _device(name: str) -> torch.device:
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available[name]:
        raise SystemExit(f"DEVICE is {name!r}, which this machine or this build of torch does not have: try 'auto'.")
    return torch.device(name)


def precision(name: str, device: torch.device) -> torch.dtype:
    """What a PRECISION stands for: "auto" is bfloat16 on a CPU that torch knows to be fast at it, float32 elsewhere."""
    known = getattr(torch.cpu, "get_capabilities", dict)()  # not in every version of torch
    fast = device.type == "cpu" and (known.get("avx512_bf16", False) or known.get("amx_bf16", False))
    if name == "auto":
        name = "bfloat16" if fast else "float32"
    return getattr(torch, name)


def products_are_rounded(name: str, device: torch.device) -> bool:
    """Whether float32 matrix products round their factors, to bfloat16 or TF32, when torch is given this precision.

    torch does not tell: a product that would show it is computed.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    x = torch.full((256, 256), 1 + 2**-12, device=device)  # 1, if it is rounded
    product = (x @ x)[0, 0].item()
    torch.set_float32_matmul_precision(before)
    return product == 256


def autocast(device: torch.device, name: str) -> torch.autocast:
    """A context in which convolutions and matrix products are computed in the precision of that name; says which.

    The weights stay float32. Where the precision is float32 the context does nothing.
    """
    dtype = precision(name, device)
    why = " (no fast bfloat16 is known here)" if name == "auto" and dtype == torch.float32 else ""
    print(f"Training in {str(dtype).removeprefix('torch.')}{why}; scores are computed in float32.", flush=True)
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16, cache_enabled=False)


_locks = {}  # folder → the open file whose lock says that this process writes there; the system frees it at our end


def _take(folder: Path) -> None:
    if folder in _locks:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # can files be made there?
        file = open(folder / ".lock", "a")  # noqa: SIM115
    except OSError as error:
        raise SystemExit(f"{folder} cannot be written: {error.strerror}.") from None
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise SystemExit(f"Another run is writing to {folder}: wait for it to end, or stop it.") from None
    except OSError:
        pass  # a file system without locks
    _locks[folder] = file


def keep_freed_memory() -> None:
    """Has this process keep the memory it frees, where the C library is glibc (Linux); elsewhere does nothing.

    A training step frees what the next one needs. Given back to the system and taken anew, page by page, it costs time
    at every step, most of all on a virtual machine.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no such library, no such function
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD, bytes: the free memory from which on some is given back
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, bytes: larger blocks are given back at once; this is the most it takes


def give_memory_back() -> None:
    """Ends keep_freed_memory, and gives back what was kept: for when blocks of other sizes are needed next."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 2**17)  # the usual threshold: what the scores need for a moment is given back at once
        libc.malloc_trim(0)


_saved = []  # not empty: a checkpoint of this run is on the disk


def _one_line_on_interrupt(kind, error, traceback) -> None:
    if issubclass(kind, KeyboardInterrupt):
        saved = "the last whole epoch is saved, run again to go on" if _saved else "no epoch was finished or saved"
        print(f"\nStopped: {saved}.", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


def check_batch_size(batch_size: int, n: int) -> None:
    """Exits with one sentence if a batch would need more than the n training images."""
    if batch_size > n:
        raise SystemExit(f"BATCH_SIZE is {batch_size}: it must not exceed the {n} training images of an epoch.")


# ---------------------------------------------------------------------------------------------- files, whole


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary name in the same folder; what was written there takes `path`'s place when the block ends.

    A run that dies in between leaves the old file. Exits with one sentence where the disk refuses.
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
    """torch.save, whole."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    with whole_file(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_torch(path: Path) -> Any:
    """What save_torch wrote, on the CPU; no code in the file is ever run. Exits with one sentence if it is not that."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise SystemExit(f"{path} is not there: run the script that writes it first.") from None
    except Exception:
        raise SystemExit(f"{path} is damaged or was not written by this project: delete it and run again.") from None


def save_model(path: Path, model: torch.nn.Module, *sizes: int) -> None:
    """The weights of `model`, with its class's name and the sizes it is constructed from."""
    weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
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


# --------------------------------------------------------------------------------------------- during training


def checkpoint(output_dir: Path, constants: dict, history: list[dict], **parts) -> None:
    """Saves all that the next epoch depends on. `parts` are modules and optimizers; `history` has a row an epoch."""
    rng = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        rng["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        rng["mps"] = torch.mps.get_rng_state()
    states = {name: part.state_dict() for name, part in parts.items()}
    save_torch(
        Path(output_dir) / "checkpoint.pt",
        {"constants": json.dumps(constants), "history": history, "rng": rng, "states": states},
    )
    _saved.append(output_dir)


def resume(output_dir: Path, constants: dict, **parts) -> list[dict]:
    """The history of an unfinished run with the same constants, its state put back into `parts`; else an empty list.

    Says which it is, and why. Call it after everything else that draws random numbers before the first epoch.
    """
    path = Path(output_dir) / "checkpoint.pt"
    if not constants.get("RESUME", True) or not path.exists():
        return []
    saved = load_torch(path)
    try:
        before, now = json.loads(saved["constants"]), json.loads(json.dumps(constants))
        if name := first_difference(before, now):
            print(f"Starting afresh: {name} was {before.get(name)!r} in the unfinished run, and is {now.get(name)!r}.")
            return []
        for name, part in parts.items():
            part.load_state_dict(saved["states"][name])
        torch.set_rng_state(saved["rng"]["cpu"])
        if "cuda" in saved["rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state(saved["rng"]["cuda"])
        if "mps" in saved["rng"] and torch.backends.mps.is_available():
            torch.mps.set_rng_state(saved["rng"]["mps"])
        history = list(saved["history"])
    except (KeyError, TypeError, ValueError, RuntimeError):
        raise SystemExit(f"{path} is not a checkpoint of this script: delete it and run again.") from None
    epoch = history[-1].get("epoch", len(history))
    print(f"Going on after epoch {epoch} of the unfinished run with the same constants.")
    _saved.append(output_dir)
    return history


def first_difference(before: dict, now: dict) -> str | None:
    """The name of a constant that decides a run's numbers and differs. RESUME is none of them."""
    names = [name for name in now | before if name != "RESUME" and now.get(name) != before.get(name)]
    return names[0] if names else None


def check_finite(loss: float, epoch: int, step: int, last: float) -> None:
    """Ends the run, with one sentence, at the first loss that is not finite. `last` is the one before; NaN if none."""
    if not math.isfinite(loss):
        before = f" (it was {last:.6g} a step before)" if math.isfinite(last) else ""
        kept = f" The checkpoint of epoch {epoch - 1} is kept." if epoch > 1 else ""
        raise SystemExit(
            f"The loss became {loss} in epoch {epoch}, step {step}{before}: try a lower LEARNING_RATE.{kept}"
        )


def print_epoch(history: list[dict], epochs: int, floors: dict[str, float]) -> None:
    """One aligned line for the last row of the history: nats per image, reconstruction above the pixel entropy.

    `floors`: the pixel entropy of the "train" and of the "test" images.
    """
    row = history[-1]
    parts = [f"epoch {len(history):{len(str(epochs))}d}/{epochs}"]
    for part, floor in floors.items():
        kl = "".join(f"  {name} {row[f'{part}_{name}']:6.2f}" for name in ("kl_z", "kl_v") if f"{part}_{name}" in row)
        parts.append(f"{part}: reconstruction above floor {row[f'{part}_reconstruction'] - floor:7.2f}{kl}")
    left = row["seconds"] * (epochs - len(history)) / 60
    tau = f"tau {row['tau']:.2f}  " if "tau" in row else ""
    print(*parts, f"{tau}{row['seconds']:5.1f} s  {left:4.1f} min left", sep=" | ", flush=True)


# ---------------------------------------------------------------------------------------------- after training


def finish(output_dir: Path, constants: dict, seconds: float, results: dict, history: list[dict] = ()) -> None:
    """Writes metrics.json, prints the results and where the files are, and drops the checkpoint: the run is over."""
    output_dir = Path(output_dir)
    device = _device(constants.get("DEVICE", "auto"))
    content = {
        "constants": constants,
        "versions": versions(device, constants),
        "seconds": round(seconds, 1),
        "results": results,
        "history": list(history),
    }
    with whole_file(output_dir / "metrics.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
    (output_dir / "checkpoint.pt").unlink(missing_ok=True)
    width = max(map(len, results))
    print()
    for name, value in results.items():
        lines = value.items() if isinstance(value, dict) else [("", value)]
        for key, line in lines:
            print(f"{name:{width}}  {key} {_readable(line)}" if key else f"{name:{width}}  {_readable(line)}")
    print(f"\n{seconds / 60:.1f} minutes. Figures and metrics.json are in {output_dir}")


def _readable(value) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{name} {_readable(part)}" for name, part in value.items())
    if isinstance(value, list):
        return "  ".join(_readable(part) for part in value)
    return f"{value:.4f}" if isinstance(value, float) else str(value)
