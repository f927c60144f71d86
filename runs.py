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
import difflib
import dis
import importlib.metadata
import inspect
import io
import json
import math
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from numbers import Integral, Real
from pathlib import Path
from types import CodeType
from typing import Any, TextIO

import filelock
import torch
import torch.nn.functional as F
from torch import Tensor

import data

ROOT = Path(__file__).parent


def _whole(low: int, below: float = math.inf):
    return (
        lambda v: isinstance(v, Integral) and type(v) is not bool and low <= v < below,
        f"a whole number, {low} or more",
    )


def _number(accepts, sentence: str):
    return (
        lambda v: isinstance(v, Real) and type(v) is not bool and abs(v) < 1e38 and accepts(v),  # what float32 holds
        f"a number {sentence}",
    )


def _choice(*values):
    return (
        lambda v: type(v) is type(values[0]) and v in values,
        f"{', '.join(map(repr, values[:-1]))} or {values[-1]!r}",
    )


def _request(request) -> bool:
    digit, hue = request if type(request) is tuple and len(request) == 2 else (None, None)
    return digit in range(10) and type(hue) in (int, float) and 0 <= hue < 360


def _range(values) -> bool:
    finite, _ = _number(lambda v: True, "")
    return type(values) is tuple and len(values) == 2 and all(map(finite, values)) and values[0] < values[1]


_NOT_BELOW_0 = _number(lambda v: v >= 0, "of 0 or more")
_REQUESTS = (
    lambda v: type(v) is tuple and v and all(map(_request, v)),
    "a tuple of requests, each (digit 0 to 9, hue in degrees from 0, below 360)",
)

# The constants that scripts share by name: what is accepted, and how to say so.
RULES = {
    name: rule
    for names, rule in (
        ("SEED TRAIN_COLOR_SEED TEST_COLOR_SEED", _whole(0, below=2**63)),
        ("EPOCHS START_EPOCHS N_STARTS N_NEIGHBORS CONSENSUS_ROUNDS", _whole(1)),
        ("BATCH_SIZE IMAGES_PER_EPOCH R1_EVERY LATENT_DIM N_VARIABLES", _whole(1)),
        ("VOTE_EPOCHS VOTE_ROUNDS", _whole(0)),
        ("N_CATEGORIES N_OVERCLUSTERS N_VOTERS", _whole(2)),
        ("LEARNING_RATE TAU_START TAU_MIN Z_VARIANCE STEP", _number(lambda v: v > 0, "above 0")),
        ("TAU_DECAY BETA R1_WEIGHT CYCLE_WEIGHT REFINE_WEIGHT", _NOT_BELOW_0),
        ("DIGIT_WEIGHT AGREEMENT_WEIGHT BALANCE_WEIGHT KNOB_WEIGHT", _NOT_BELOW_0),
        ("MAX_SHIFT MAX_ROTATION MAX_SHEAR ELASTIC START_ELASTIC", _NOT_BELOW_0),
        ("BETA1 BETA2 EMA_DECAY MAX_SCALE MAX_STRETCH", _number(lambda v: 0 <= v < 1, "of 0 or more, below 1")),
        ("DECAY_FROM REFINE_FROM", _number(lambda v: 0 <= v <= 1, "from 0 to 1")),
        ("INPUT_RANGE", (_range, "a tuple of two numbers, the lower one first")),
        ("HARD RESUME HE_WEIGHTS", _choice(True, False)),
        ("PRECISION", _choice("auto", "bfloat16", "float32")),
        ("MATMUL_PRECISION", _choice("medium", "highest")),
        ("DEVICE", _choice("auto", "cpu", "cuda", "mps")),
        ("REQUESTS", _REQUESTS),
    )
    for name in names.split()
}

# Those that only a Run reads, and those that decide no number of it: only where it is computed, and what is drawn.
READ_BY_RUN = ("RESUME", "DEVICE", "PRECISION", "MATMUL_PRECISION")
WITHOUT_EFFECT = ("RESUME", "DEVICE", "Z_VARIANCE", "STEP", "REQUESTS")
CHECK_EVERY = 50  # steps, on a GPU
NOTHING_EXPLAINED = 0.02  # share of the pixels' variance: a code that explains less gets a warning


# ------------------------------------------------------------------------------------------------ a run


def command(main: Callable) -> None:
    """Calls main() for a file that is run from a shell. Given arguments, says in two sentences how the file is used."""
    file = getattr(sys.modules["__main__"], "__file__", None)  # a notebook has none; its arguments are its kernel's
    if file and len(sys.argv) > 1:
        name = Path(file).name
        usage = (
            f"{name} takes no arguments: its settings are the constants at its top. Edit them, and run {name} again."
        )
        if sys.argv[1] not in ("-h", "--help"):
            print(usage, file=sys.stderr)
            raise SystemExit(2)  # a shell's status for a wrong command line
        print(usage)
        return
    try:
        with lasting_log():
            main()
    except KeyboardInterrupt:  # between runs; a run says more
        raise SystemExit(130) from None
    except NameError as error:
        if not str(error.name).isupper():
            raise
        raise SystemExit(f"{error.name} is not defined: put it back among the constants.") from None


def constants(namespace: dict, data_constants: tuple[str, ...] = data.RANDOM_COLORS) -> dict:
    """The UPPERCASE literals of a script (pass `globals()`), after the constants of data.py with these names."""
    own = {name: value for name, value in namespace.items() if name in RULES or _is_constant(name, value)}
    return {name: getattr(data, name) for name in data_constants} | own


def _is_constant(name: str, value: Any) -> bool:
    return name.isupper() and isinstance(value, bool | int | float | str | tuple)


def start(
    folder: Path,
    namespace: dict,
    data_constants: tuple[str, ...] = data.RANDOM_COLORS,
    schedule: tuple[str, ...] = (),
) -> "Run":
    """Checks the constants of a script (pass `globals()`), reserves the output folder, prints the head of the log.

    `data_constants` names those of data.py that decide what the script sees. `schedule` names ("EPOCHS",) if an epoch
    depends on how many follow, as where a learning rate falls to 0 at the end: a longer run then starts afresh. Exits
    with one sentence if a constant is missing or out of range, a package is too old, the folder cannot be written, or
    another run is writing there.
    """
    _check_packages()
    check_folder(folder)
    _check_names(namespace, Path(namespace.get("__file__", "this script")).name)
    _check_names(vars(data), "data.py", {*data.RANDOM_COLORS, *data.DOMAINS, "RANDOM_COLORS", "DOMAINS"})
    values = constants(namespace, data_constants)
    for name, value in values.items():
        accepts, sentence = RULES.get(name, (lambda v: True, ""))
        if not accepts(value):
            raise SystemExit(f"{name} is {value!r}: it must be {sentence}.")
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            plain = "Python's own numbers, strings and tuples, as in float(x)"
            raise SystemExit(f"{name} is {value!r}: it must be made of {plain}.") from None
    if values.get("TAU_MIN", 0) > values.get("TAU_START", 0):
        raise SystemExit(f"TAU_MIN is {values['TAU_MIN']}: it must not exceed TAU_START, {values['TAU_START']}.")
    run = Run(folder, values, _device(values.get("DEVICE", "auto")), schedule)
    print(*(f"{name} = {value!r}" for name, value in values.items()), sep="\n")
    print(", ".join(f"{name} {value}" for name, value in run.versions.items()), flush=True)
    return run


def check_folder(folder: Path) -> None:
    """Exits with one sentence if an OUTPUT_DIR is a string, say: scripts write `OUTPUT_DIR / name`."""
    if not isinstance(folder, Path):
        raise SystemExit(f"OUTPUT_DIR is {folder!r}: it must be a Path, as in Path({str(folder)!r}).")


def _check_names(namespace: dict, file: str, read_elsewhere: Iterable[str] = ()) -> None:
    """Exits with one sentence if a constant is missing that a function of the namespace reads, or is misspelt.

    Misspelt: nothing reads it, and its name is like that of one that is read. Warns of those of other scripts. For a
    script that trains with `run.resume`, its Run reads some; `read_elsewhere` names what else no function here reads.
    """
    functions = [inspect.unwrap(value) for value in namespace.values() if inspect.isroutine(value)]
    classes = [value for value in namespace.values() if inspect.isclass(value)]
    functions += [value for cls in classes for value in vars(cls).values() if inspect.isfunction(value)]
    codes = [f.__code__ for f in functions if getattr(f, "__globals__", None) is namespace]
    read = {name for code in codes for name in _names_read(code) if name.isupper()} | {*read_elsewhere}
    called = {name for code in codes for name in code.co_names}
    if "resume" in called:
        read |= {"RESUME", "DEVICE", "PRECISION" if "autocast" in called else "MATMUL_PRECISION"}
    if "__file__" in namespace:  # a notebook has variables of its own
        for name in [name for name, value in namespace.items() if _is_constant(name, value)]:
            if read and name not in read and name not in READ_BY_RUN:
                if meant := difflib.get_close_matches(name, {*read, *READ_BY_RUN}, 1, 0.8):
                    unknown = f"{name} is not a constant that {file} knows"
                    raise SystemExit(f"{unknown}: rename it to {meant[0]}, or delete it.")
                if name in RULES:
                    print(f"Warning: nothing in {file} reads {name}.")
    if missing := sorted(read - namespace.keys()):
        raise SystemExit(f"{missing[0]} is not defined: put it back among the constants of {file}.")


def _names_read(code: CodeType) -> Iterator[str]:
    yield from (step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL")
    for constant in code.co_consts:
        if isinstance(constant, CodeType):  # a function inside
            yield from _names_read(constant)


class Run:
    """One run of a script, as a context: its folder, its constants, its device and its clock.

    At the end of the block the folder is free for other runs, and torch's settings are what they were. A log that
    cannot be written does not end the block.
    """

    def __init__(self, folder: Path, constants: dict, device: torch.device, schedule: tuple[str, ...] = ()):
        self.folder, self.constants, self.device, self._schedule = folder, constants, device, schedule
        self.versions = versions(device, constants)
        self._ends = contextlib.ExitStack()  # what the end of the block undoes
        self._ends.callback(_lock(folder).release)
        self._ends.enter_context(lasting_log())
        self._ends.enter_context(matmul_precision(constants.get("MATMUL_PRECISION", "highest")))
        self._ends.callback(release_freed_memory)
        keep_freed_memory()
        self._started, self._seconds_before = time.perf_counter(), 0.0
        self._parts, self._losses, self._last_loss, self._saved_epoch = {}, [], math.nan, 0

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback) -> None:
        with self._ends:
            if isinstance(error, KeyboardInterrupt):
                saved = "the last whole epoch is saved, run again to go on" if self._saved_epoch else None
                print(f"\nStopped: {saved or 'no epoch was finished or saved'}.", file=sys.stderr)
                raise SystemExit(130) from None  # a shell's status for a program that was interrupted
            too_large = ("t allocate memory", "size calculation overflowed")  # torch's words on a CPU
            if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in too_large):
                small = f"The memory of this machine ({self.device}) is too small"
                raise SystemExit(f"{small}: try smaller sizes among the constants.{self._kept()}") from None

    def _kept(self) -> str:
        return f" The checkpoint of epoch {self._saved_epoch} is kept." if self._saved_epoch else ""

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

    def check_finite(self, loss: Tensor | float, step: int, phase: str = "") -> None:
        """Ends the run with one sentence at the first loss that is not finite. `phase`: if not an epoch, its name.

        On a CPU at once. A GPU would have to wait at each step, so its losses are read every CHECK_EVERY steps, and
        before each checkpoint.
        """
        self._losses.append((torch.as_tensor(loss).detach(), step, phase))
        if self.device.type == "cpu" or len(self._losses) == CHECK_EVERY:
            self._check_losses()

    def _check_losses(self) -> None:
        losses, self._losses = self._losses, []
        for loss, step, phase in losses:
            self._check_loss(loss.item(), step, phase)

    def _check_loss(self, loss: float, step: int, phase: str) -> None:
        if not math.isfinite(loss):
            phase, known = phase or f"epoch {self._saved_epoch + 1}", self.constants
            before = f" (it was {self._last_loss:.6g} before)" if math.isfinite(self._last_loss) else ""
            causes = [f"a higher {name}" for name in ("TAU_START", "TAU_MIN") if known.get(name, 1) < 0.01]
            weights = [name for name in known if name == "BETA" or name.endswith("_WEIGHT")]
            causes += [f"a lower {name}" for name in weights if known[name] > 100]
            changed = step > 0 or math.isfinite(self._last_loss)
            causes += ["a lower LEARNING_RATE"] * changed + ["DEVICE = 'cpu'"] * (self.device.type == "mps")
            advice = f"try {' or '.join(causes)}" if causes else "no weight had changed yet, so look at the loss itself"
            what = f"The loss became {loss} in {phase}, step {step}{before}"
            raise SystemExit(f"{what}: {advice}.{self._kept()}")
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
        seconds, left = row["seconds"], ""  # the first epoch's are with the set-up, and predict nothing
        if len(history) > 1:
            seconds -= history[-2]["seconds"]
            left = f"  {seconds * (epochs - row['epoch']) / 60:4.1f} min left"
        tau = f"tau {row['tau']:.2f}  " if "tau" in row else ""
        print(*parts, f"{tau}{seconds:5.1f} s{left}", sep=" | ", flush=True)
        nothing = [row.get("explained_variance", 1) < NOTHING_EXPLAINED for row in history[-2:]]
        if nothing in ([True], [False, True]):  # the first epoch of which this is true
            print(
                "Warning: the code carries almost nothing: all images are decoded to nearly the same picture. If this "
                "stays so for some epochs, stop the run, and try another SEED or a lower LEARNING_RATE.",
                flush=True,
            )

    # ---------------------------------------------------------------------------------- going on after a stop

    def resume(self, **parts) -> list[dict]:
        """The history of an earlier run with the same constants, whose state is put back into `parts`; or [].

        That is an unfinished run, or a finished one of fewer EPOCHS if the schedule allows it. `parts` are modules,
        optimizers and schedules: all that the next epoch depends on. Says whether the run goes on, and if not, why.
        Call it after everything else that draws random numbers before the first epoch.
        """
        self._parts, reasons = parts, []
        if not self.constants["RESUME"]:
            return []
        for kind, name in (("unfinished", "checkpoint.pt"), ("finished", "finished.pt")):
            path = self.folder / name
            if path.exists():
                saved = load_torch(path)
                try:
                    reason = self._why_not(saved, kind)
                    if reason is None:
                        return self._go_on(saved, kind)
                except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError):
                    raise SystemExit(f"{path} is not a checkpoint of this script: delete it and run again.") from None
                reasons.append(reason)
        if reason := next(filter(None, reasons), None) or self._why_not_longer():
            print(f"Starting afresh: {reason}.")
        return []

    def _why_not(self, saved: dict, kind: str) -> str | None:
        """None if a run can go on from this state, else the reason; "" for one that is not worth a line."""
        before, now = json.loads(saved["constants"]), json.loads(json.dumps(self.constants))
        length = {"EPOCHS"} - set(self._schedule)
        done, wanted = saved["history"][-1]["epoch"], now.get("EPOCHS", math.inf)
        if name := first_difference(before, now, ignored=length):
            why = ", which the schedule depends on," if name in self._schedule else ""
            was = f"was {before[name]!r}" if name in before else "was not there"
            reason = f"{name}{why} {was} in the {kind} run, and is {repr(now[name]) if name in now else 'gone'}"
            return reason if kind == "unfinished" or done < wanted else ""
        if kind == "finished":
            return None if done < wanted else ""  # the same again is trained again
        return f"EPOCHS is {wanted}, and the unfinished run has {done}" if done > wanted else None

    def _go_on(self, saved: dict, kind: str) -> list[dict]:
        for name, part in self._parts.items():
            part.load_state_dict(saved["states"][name])
        torch.set_rng_state(saved["rng"]["cpu"])
        if self.device.type in saved["rng"] and self.device.type != "cpu":
            torch.get_device_module(self.device).set_rng_state(saved["rng"][self.device.type])
        history = list(saved["history"])
        self._seconds_before = history[-1]["seconds"] - self.seconds()
        self._saved_epoch = history[-1]["epoch"]
        print(f"Going on after epoch {self._saved_epoch} of the {kind} run with the same constants.")
        was = saved.get("versions", {})
        changed = [name for name in ("device", "threads", "machine", "precision", "torch") if name in was]
        if changed := [name for name in changed if was[name] != self.versions.get(name)]:
            changes = ", ".join(f"{name} {was[name]} → {self.versions.get(name)}" for name in changed)
            print(f"Not what it was: {changes}. The numbers may differ from those of a run that was not interrupted.")
        return history

    def _why_not_longer(self) -> str | None:
        """Why a run does not go on from a finished one that has the same constants, but fewer EPOCHS; else None."""
        before, now = {}, json.loads(json.dumps(self.constants))
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            before = dict(json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))["constants"])
        done = before.get("EPOCHS")
        if type(done) is not int or first_difference(before, now, {"EPOCHS"}) or done >= now.get("EPOCHS", 0):
            return None
        why = "the schedule depends on EPOCHS" if "EPOCHS" in self._schedule else "its last state is not kept here"
        return f"the finished run of {done} epochs cannot go on, because {why}"

    def checkpoint(self, history: list[dict]) -> None:
        """Saves the state of the parts that `resume` was given. `history` has a row for each finished epoch."""
        self._check_losses()
        rng = {"cpu": torch.get_rng_state()}
        if self.device.type != "cpu":
            rng[self.device.type] = torch.get_device_module(self.device).get_rng_state()
        states = {name: part.state_dict() for name, part in self._parts.items()}
        content = {"constants": json.dumps(self.constants), "versions": self.versions}
        save_torch(self.folder / "checkpoint.pt", content | {"history": history, "rng": rng, "states": states})
        self._saved_epoch = history[-1]["epoch"]

    def finish(self, results: dict, history: list[dict]) -> None:
        """Writes metrics.json, prints the results and where the files are.

        The checkpoint becomes finished.pt, from which a longer run can go on; it is deleted where none can.
        """
        content = {"constants": self.constants, "versions": self.versions}
        content |= {"seconds": round(self.seconds(), 1), "results": results, "history": history}
        with atomic_write(self.folder / "metrics.json") as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        with contextlib.suppress(OSError):  # where there was none, or it cannot be renamed: nothing is lost
            if "EPOCHS" in self._schedule:
                (self.folder / "checkpoint.pt").unlink()
            else:
                os.replace(self.folder / "checkpoint.pt", self.folder / "finished.pt")
        width = max(map(len, results))
        print("", *(f"{name:{width}}  {_readable(value)}" for name, value in results.items()), sep="\n")
        print(f"\n{self.seconds() / 60:.1f} minutes. Figures and metrics.json are in {self.folder}")


def first_difference(before: dict, now: dict, ignored: Iterable[str] = ()) -> str | None:
    """The name of a constant that decides a run's numbers and differs, but for the ignored ones."""
    free = {*WITHOUT_EFFECT, *ignored}
    return next((name for name in now | before if name not in free and now.get(name) != before.get(name)), None)


def load_results(path: Path, names: Iterable[str] = ()) -> dict:
    """The content of a metrics.json. Exits with one sentence if it is damaged or its results lack one of the names."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if {*content["constants"], *content["results"]} >= set(names):
            return content
    except OSError as error:
        raise SystemExit(f"{path} cannot be read: {error.strerror or error}.") from None
    except (ValueError, KeyError, TypeError):
        pass
    raise SystemExit(f"{path} is damaged or of another version of the code: delete it and run again.")


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
    return own | {"python": platform.python_version()} | {name: _version(name) for name in packages}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _check_packages() -> None:
    """Exits with one sentence if a package is older than requirements.txt, if there is one, admits."""
    file = ROOT / "requirements.txt"
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    for package, lowest in re.findall(r"^([\w-]+)>=([\d.]+)", text, flags=re.MULTILINE):
        have = _version(package)
        numbers = [tuple(map(int, re.findall(r"\d+", version)[:2])) for version in (have, lowest)]
        if have != "unknown" and numbers[0] < numbers[1]:
            raise SystemExit(f"{package} {have} is too old: this needs {lowest} or newer, as requirements.txt says.")


def _machine() -> str:
    with contextlib.suppress(OSError):  # Linux; elsewhere the platform module knows as much as there is
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return f"{line.split(':')[1].strip()} {platform.machine()}"
    return platform.processor() or platform.machine()


def _device(name: str) -> torch.device:
    """What a DEVICE stands for. A GPU must first compute a small step; "auto" takes none of a kind never tried here."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto" and there["mps"]:
        print("The GPU (mps) is not used: these scripts were never run on one. DEVICE = 'mps' uses it all the same.")
    chosen = name if name != "auto" else "cuda" if there["cuda"] else "cpu"
    if not there[chosen]:
        raise SystemExit(f"DEVICE is {name!r}, which this machine or this build of torch does not have: try 'auto'.")
    if chosen != "cpu" and (fault := _fault(torch.device(chosen))):
        if name != "auto":
            raise SystemExit(f"DEVICE is {name!r}, which cannot be used ({fault}): try 'cpu', or mend its driver.")
        print(f"The GPU ({chosen}) cannot be used ({fault}): computing on the CPU.")
        chosen = "cpu"
    return torch.device(chosen)


def _fault(device: torch.device) -> str | None:
    """What goes wrong in a small training step on a device, in a few words, or None."""
    try:
        x = torch.ones(2, 1, 4, 4, device=device, requires_grad=True)
        F.conv2d(x, x.detach()[:1, :, :3, :3]).flatten(1).mm(x.detach()[0, 0]).sum().backward()
        return None if x.grad.sum().item() == 288 else "it computes wrong numbers"
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        return str(error).partition("\n")[0].rstrip(".")


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


@contextlib.contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """Sets torch.set_float32_matmul_precision for a block, and puts back what was set before."""
    backends = [part.matmul for part in (torch.backends.cuda, torch.backends.mkldnn) if hasattr(part, "matmul")]
    try:
        before, parts = torch.get_float32_matmul_precision(), []
    except RuntimeError:  # set by torch's newer interface, to what the older one has no word for
        before, parts = "highest", [(backend, backend.fp32_precision) for backend in backends]
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        for backend, value in parts:
            backend.fp32_precision = value


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


# ----------------------------------------------------------------------------------------------------- log


class _Stream:
    """A text stream that raises no error: signs it cannot encode become "?", and what it cannot write is left out."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        with self._to_the_end():
            self._stream.write(text.encode(encoding, "replace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        with self._to_the_end():
            self._stream.flush()

    @contextlib.contextmanager
    def _to_the_end(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):  # nobody reads it any more, the disk is full, or it is closed
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())  # else Python fails once more, when it ends


@contextlib.contextmanager
def lasting_log() -> Iterator[None]:
    """A block that goes on when its log cannot be written: `| head` has read enough, say."""
    streams = [stream and _Stream(stream) for stream in (sys.stdout, sys.stderr)]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        yield


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
    except OSError as error:
        raise SystemExit(f"{path} cannot be read: {error.strerror or error}.") from None
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
