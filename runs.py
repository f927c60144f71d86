"""What a run needs around its training loop: constants, device, checkpoints, a results file.

with runs.start(OUTPUT_DIR, globals()) as run:
    ...
    history = run.resume(model=model, optimizer=optimizer)
    ...  # one epoch after the other, each with run.checkpoint(history)
    run.finish(results, history)
"""

import argparse
import ast
import contextlib
import ctypes
import hashlib
import importlib.metadata
import io
import json
import math
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import filelock
import torch

import data

ROOT = Path(__file__).parent
# Names of constants (regular expressions): type, lowest and highest value. The first match counts.
LIMITS = (
    (r"(\w+_)?SEED", int, 0, 2**63 - 1),
    (r"EPOCHS|BATCH_SIZE|LOG_EVERY|R1_EVERY|LATENT_DIM|N_\w+", int, 1, 10**9),
    (r"EMA_DECAY|BETA[12]|MAX_SCALE|MAX_WIDTH", float, 0, 0.999999),
    (r"\w+_FROM", float, 0, 1),
    (r"LEARNING_RATE|TAU_START|TAU_MIN|TEMPERATURE|Z_VARIANCE|STEP", float, 1e-30, 1e30),
    (r"\w+_WEIGHT|BETA|TAU_DECAY|MAX_\w+|(\w+_)?ELASTIC", float, 0, 1e30),
    (r"HARD|RESUME", bool, False, True),
)
GPUS = ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
CHOICES = {"DEVICE": ("auto", "cpu", *GPUS), "PRECISION": ("auto", "bfloat16", "float32"), "OUTPUT_DIR": ("a Path",)}
WITHOUT_EFFECT = ("RESUME", "DEVICE", "PRECISION", "Z_VARIANCE", "STEP", "REQUESTS")  # at most rounding
CAPABILITIES = getattr(torch.cpu, "get_capabilities", dict)()  # of this CPU; not in every version of torch
NOT_TRAINING = ("metrics", "judge", "plots", "runs")  # modules that fingerprint() leaves out


def command(main: Callable, rows: Collection[str] = ()) -> None:
    """Calls main() of a file that is run from a shell, with the names given there, all in `rows`.

    `--help` prints the file's docstring. Other names exit with status 2. A notebook's are ignored.
    """
    script, names = sys.modules["__main__"], []
    if Path(sys.argv[0]).resolve() == Path(getattr(script, "__file__", None) or ".").resolve():
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.reconfigure(errors="replace")  # a terminal without the signs of the log
        parser = argparse.ArgumentParser(description=script.__doc__, formatter_class=argparse.RawTextHelpFormatter)
        parser.add_argument("rows", nargs="*", help=", ".join(rows) or argparse.SUPPRESS)
        names = parser.parse_args().rows
        if unknown := [name for name in names if name not in rows]:
            parser.error(f"unknown argument {unknown[0]!r}")
    try:
        main(*names)
    except KeyboardInterrupt:
        print("\nStopped. If an epoch was saved, run again to go on after it.", file=sys.stderr)
        raise SystemExit(130) from None  # a shell's status for a program that was interrupted


def constants(namespace: dict, data_constants: tuple[str, ...] = data.RANDOM_COLORS) -> dict:
    """The UPPERCASE literals of a script (pass `globals()`), after these constants of data.py."""
    bounded = [name for name in namespace if any(re.fullmatch(pattern, name) for pattern, *_ in LIMITS)]
    own = {k: v for k, v in namespace.items() if k.isupper() and isinstance(v, bool | int | float | str | tuple)}
    return {name: getattr(data, name) for name in data_constants} | own | {name: namespace[name] for name in bounded}


def check(values: dict) -> None:
    """Exits with one sentence if a constant is none that LIMITS or CHOICES have for its name."""
    for name, value in values.items():
        kind, low, high = next((rule for pattern, *rule in LIMITS if re.fullmatch(pattern, name)), (None, 0, 0))
        right = type(value) is kind or (type(value) is int and kind is float)
        if kind and not (right and low <= value <= high):
            raise SystemExit(f"{name} is {value!r}: it must be of type {kind.__name__}, from {low} to {high}.")
        if value not in (choices := CHOICES.get(name, (value,))):
            raise SystemExit(f"{name} is {value!r}: it must be {' or '.join(choices)}.")


def first_difference(before: dict, now: dict) -> str | None:
    """The first name whose values differ, but for constants that change no result."""
    return next((k for k in now | before if k not in WITHOUT_EFFECT and now.get(k) != before.get(k)), None)


def fingerprint(script: Path) -> str:
    """A hash of the code that trains: main() to its last epoch loop, and what it reaches by name.

    These are functions, classes and variables of the script, of data.py, of a script it imports.
    A script's constants, comments, docstrings, errors, and what scores or draws do not count.
    """
    own = {"OUTPUT_DIR", "DATA_DIR", *data.RANDOM_COLORS, *data.DOMAINS}  # constants
    files, defined, reached, queue = [script], {}, {}, ["main"]
    for file in files:  # grows
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = {getattr(node, "name", ""), *(alias.asname for alias in getattr(node, "names", []))}
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
                names = _names(*getattr(node, "targets", [getattr(node, "target", node)]))
                if file == script and _names(node.value or node) == {""}:  # a literal
                    own |= {name for name in names if name.isupper()}
                names -= own
            for alias in getattr(node, "names", []):
                path = script.with_name(f"{getattr(node, 'module', alias.name)}.py")
                if path.exists() and path.stem not in NOT_TRAINING and path not in files:
                    files.append(path)
            for name in names - {None, "", *["main"] * (file != script)}:
                defined.setdefault(name, []).append(node)
    for block in [node for node in defined["main"][0].body if isinstance(node, ast.With)]:
        loops = [i for i, part in enumerate(block.body, 1) if getattr(getattr(part, "target", 0), "id", 0) == "epoch"]
        block.body = block.body[: loops[-1] if loops else None]
    while queue:
        if (name := queue.pop()) in defined and name not in reached:
            reached[name] = _plain(defined[name])
            queue += _names(*defined[name])
    return hashlib.sha256(repr(sorted(reached.items())).encode()).hexdigest()[:16]


def _names(*nodes: ast.AST) -> set[str]:
    """All names in syntax trees, and ""."""
    return {getattr(n, "attr", getattr(n, "id", getattr(n, "name", ""))) for node in nodes for n in ast.walk(node)}


def _plain(node: Any) -> Any:
    """A syntax tree as nested lists without docstrings, types, errors, alike in every Python."""
    if isinstance(node, list):
        texts = [part for part in node if isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant)]
        return [_plain(part) for part in node if part not in texts and not isinstance(part, ast.Raise)]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [(k, v) for k, v in ast.iter_fields(node) if v not in (None, []) and k not in ("annotation", "returns")]
    return [type(node).__name__, *((k, _plain(v)) for k, v in fields)]


@contextlib.contextmanager
def start(folder: Path, namespace: dict, data_constants: tuple[str, ...] = data.RANDOM_COLORS) -> Iterator["Run"]:
    """A run of a script (pass `globals()`) as a context with its folder reserved and torch set up.

    `data_constants`: those of data.py that decide what the script sees. Exits if a constant is out
    of range, or the folder is not writable, in use, or holds another script's results.
    """
    values, file = constants(namespace, data_constants), namespace.get("__file__")
    check(values)
    if sys.stderr is None:  # closed, or pythonw: the progress bar needs a stream
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    with _reserve(Path(folder)), _torch_settings():
        run = Run(Path(folder), values, file and Path(file))
        print(*(f"{name} = {value!r}" for name, value in values.items()), sep="\n")
        print(", ".join(f"{name} {value}" for name, value in run.versions.items()), flush=True)
        yield run


class Run:
    """A run's folder, constants, device, clock, and code, to which main() adds judge and images."""

    def __init__(self, folder: Path, constants: dict, script: Path | None):
        self.folder, self._parts = folder, {}
        self.constants = json.loads(json.dumps(constants))  # lists for tuples, as in a file
        name = constants.get("DEVICE", "auto")
        self.device = torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
        self._generators = [torch, *[torch.get_device_module(self.device)] * (self.device.type != "cpu")]
        self.versions = versions(self.device, constants)
        self.code = {"script": script and script.stem, "fingerprint": script and fingerprint(script)}
        self._started, self._seconds_before = time.perf_counter(), 0.0
        if (folder / "metrics.json").exists():
            self._refuse_foreign(load_results(folder / "metrics.json").get("code"))

    def _refuse_foreign(self, code: dict | None) -> None:
        if code and None not in (made_by := code["script"], self.code["script"]) and made_by != self.code["script"]:
            raise SystemExit(f"{self.folder} holds results of {made_by}.py: give OUTPUT_DIR another name.")

    def end_training(self) -> None:
        """From here on matrix products are exact again, and freed memory goes to the system."""
        torch.set_float32_matmul_precision("highest")
        keep_freed_memory(False)

    def seconds(self) -> float:
        """Seconds since the start. Those of an interrupted run count up to its last checkpoint."""
        return self._seconds_before + time.perf_counter() - self._started

    def autocast(self) -> torch.autocast:
        """A context for convolutions and matrix products in PRECISION. Weights stay float32."""
        enabled = precision(self.constants["PRECISION"], self.device) == torch.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled, cache_enabled=False)

    def resume(self, **parts) -> list[dict]:
        """Loads an unfinished run of the same code and constants. Returns its history, or [].

        `parts`: all an epoch depends on: modules, optimizers. Prints whether the run goes on, and
        if not, why. Call it when all its parts are made; it also sets the random state.
        """
        # The faster library, until end_training(). With AMX it would round products to bfloat16.
        torch.set_float32_matmul_precision("highest" if CAPABILITIES.get("amx_bf16") else "medium")
        self._parts, path = parts, self.folder / "checkpoint.pt"
        if not path.exists():
            return []
        saved = load_torch(path)
        try:
            self._refuse_foreign(saved["code"])
            if not self.constants["RESUME"]:
                return []
            if name := first_difference(saved["constants"] | saved["code"], self.constants | self.code):
                what = "the code that trains" if name == "fingerprint" else name
                print(f"Starting afresh, because this has changed since the unfinished run: {what}.")
                return []
            for name, part in parts.items():
                part.load_state_dict(saved["states"][name])
            for part, state in zip(self._generators, saved["rng"], strict=False):
                part.set_rng_state(state)
            history, changed = saved["history"], first_difference(saved["versions"], self.versions)
            self._seconds_before, epoch = history[-1]["seconds"] - self.seconds(), history[-1]["epoch"]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError):
            raise SystemExit(f"{path} is not a checkpoint of this script: delete it and run again.") from None
        print(f"Going on after epoch {epoch} of the unfinished run with the same code and constants.")
        if changed:
            print(f"Its {changed} was another, so the numbers may differ from those of a run without interruption.")
        return history

    def checkpoint(self, history: list[dict]) -> None:
        """Saves the parts that `resume` was given. `history` has a row for each finished epoch.

        Exits if a number of the last row is not finite. The checkpoint before it is kept.
        """
        numbers = {name: value for name, value in history[-1].items() if isinstance(value, float)}
        if bad := [f"{name} is {value}" for name, value in numbers.items() if not math.isfinite(value)]:
            raise SystemExit(f"{bad[0]} in epoch {history[-1]['epoch']}: try a lower LEARNING_RATE. Saved epochs stay.")
        rng = [part.get_rng_state() for part in self._generators]
        states = {name: part.state_dict() for name, part in self._parts.items()}
        content = {"constants": self.constants, "code": self.code, "versions": self.versions}
        save_torch(self.folder / "checkpoint.pt", content | {"history": history, "rng": rng, "states": states})

    def finish(self, results: dict, history: list[dict]) -> dict:
        """Writes metrics.json, prints and returns the results, and deletes the checkpoint."""
        content = {"constants": self.constants, "versions": self.versions, "code": self.code}
        content |= {"seconds": round(self.seconds(), 1), "results": results, "history": history}
        write_text(self.folder / "metrics.json", json.dumps(content, indent=1) + "\n")
        (self.folder / "checkpoint.pt").unlink(missing_ok=True)
        numbers = {name: value for name, value in results.items() if isinstance(value, float)}
        print("", *(f"{name:30}  {value:.4f}" for name, value in numbers.items()), sep="\n")
        print(f"\n{self.seconds() / 60:.1f} minutes. Figures and metrics.json are in {self.folder}")
        return results


def load_results(path: Path) -> dict:
    """The content of a metrics.json. Exits with one sentence if it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if {"constants", "results", "history"} <= content.keys():
            return content
    raise SystemExit(f"{path} is missing or damaged: delete it and run again.")


def versions(device: torch.device, constants: dict) -> dict[str, str]:
    """What the numbers of a run with these constants may depend on besides them."""
    own = {"device": str(device), "threads": str(torch.get_num_threads()), "machine": _machine()}
    if "PRECISION" in constants:
        own["precision"] = str(precision(constants["PRECISION"], device)).removeprefix("torch.")
    own["python"], packages = platform.python_version(), ("torch", "torchvision", "numpy", "matplotlib")
    return own | {name: importlib.metadata.version(name) for name in packages}


def _machine() -> str:
    with contextlib.suppress(OSError, TypeError):  # Linux has this file and line
        name = re.search("model name.*: (.*)", Path("/proc/cpuinfo").read_text(errors="replace"))[1]
        return f"{name.strip()} {platform.machine()}"
    return platform.processor() or platform.machine()


def precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of a PRECISION. "auto": bfloat16 on a CPU that is fast at it, float32 elsewhere."""
    fast = device.type == "cpu" and (CAPABILITIES.get("avx512_bf16") or CAPABILITIES.get("amx_bf16"))
    return getattr(torch, name if name != "auto" else "bfloat16" if fast else "float32")


def _reserve(folder: Path) -> contextlib.AbstractContextManager:
    """No other run writes to this folder until the block, or the process, ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(folder / ".lock", timeout=0).acquire()
    except filelock.Timeout:
        raise SystemExit(f"Another run is writing to {folder}: wait for it to end, or stop it.") from None
    except OSError as error:
        raise SystemExit(f"{folder} cannot be written: {error.strerror}.") from None


@contextlib.contextmanager
def _torch_settings() -> Iterator[None]:
    """torch's defaults for a block; then as before."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    products = torch.get_float32_matmul_precision()
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_float32_matmul_precision("highest")
    keep_freed_memory(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        keep_freed_memory(False)
        torch.set_default_dtype(dtype)
        torch.set_default_device(device if device.type != "cpu" else None)
        torch.set_float32_matmul_precision(products)


def keep_freed_memory(keep: bool) -> None:
    """Whether the process keeps memory it frees, for the next step. Does nothing without glibc."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no such library or function
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD, bytes of free memory that are kept
        libc.mallopt(-3, 2**25 if keep else 2**17)  # M_MMAP_THRESHOLD, bytes: larger are returned
        libc.malloc_trim(0)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary name; its file replaces `path` after the block. Exits on a disk error."""
    temporary = path.with_name(f"{path.stem}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise SystemExit(f"{path} could not be written ({error.strerror}); what was there is unchanged.") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """UTF-8, as an atomic write."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def save_torch(path: Path, value: Any) -> None:
    """torch.save, as an atomic write."""
    buffer = io.BytesIO()  # torch's own writer raises no OSError
    torch.save(value, buffer)
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_torch(path: Path) -> Any:
    """What save_torch wrote, on the CPU. Runs no code in it. Exits if it is missing or damaged."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        raise SystemExit(f"{path} is missing, damaged or foreign: delete it, run the script that writes it.") from None


def save_model(path: Path, model: torch.nn.Module, *sizes: int) -> None:
    """The weights of `model`, with its class's name and the sizes it is constructed from."""
    name = type(getattr(model, "_orig_mod", model)).__name__
    save_torch(path, {"class": name, "sizes": list(sizes), "weights": weights(model)})


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of a network's weights on the CPU, under its own names even after torch.compile."""
    return {k: tensor.detach().cpu().clone() for k, tensor in getattr(model, "_orig_mod", model).state_dict().items()}


def load_model(path: Path, cls: type) -> torch.nn.Module:
    """The `cls` that save_model wrote: frozen, on the CPU, in eval mode. Exits if it is another."""
    saved = load_torch(path)
    if not isinstance(saved, dict) or saved.get("class") != cls.__name__:
        raise SystemExit(f"{path} does not hold a {cls.__name__}: delete it, or name the right file.")
    try:
        model = cls(*saved["sizes"])
        model.load_state_dict(saved["weights"])
    except (KeyError, TypeError, RuntimeError):
        raise SystemExit(f"{path} holds a {cls.__name__} of other sizes or version: train it again.") from None
    return model.float().cpu().requires_grad_(False).eval()
