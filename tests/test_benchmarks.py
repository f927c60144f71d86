"""The times: steps are timed from outside, and set beside their floor."""

import os

import data
import runs
import vae_continuous
from benchmarks import timing, vae_step


def test_steps_are_timed_from_outside_and_everything_is_put_back(few_images):
    before = runs.Run.checkpoint, data.load, vars(vae_continuous).copy()
    stamps = timing.first_epoch(vae_continuous, images=300, BATCH_SIZE=20)
    assert len(stamps) == 15 + 1 and stamps == sorted(stamps)  # steps, and the end of the epoch
    assert 0 < timing.step_seconds(vae_continuous, 3, images=300, BATCH_SIZE=20) < 10
    assert before == (runs.Run.checkpoint, data.load, vars(vae_continuous))


def test_apart_is_another_process_that_starts_workers_as_usual():
    assert timing.apart(os.getpid) != os.getpid()
    asked = "__import__('multiprocessing').get_start_method()"
    assert timing.apart(eval, asked) == eval(asked)


def test_repeats_alternate_and_ratios_are_of_each_repeat():
    order = []
    functions = {"usual": lambda: order.append("usual") or 2.0, "script": lambda: order.append("script") or 0.5}
    values = timing.repeated(functions, 3)
    assert order == ["usual", "script"] * 3
    assert timing.row("x", values, "usual") == ["x", "2000.0", "500.0", "0.25 (0.25 to 0.25)"]


def test_a_step_beside_its_floor(few_images, monkeypatch):
    monkeypatch.setattr(vae_step, "WARM_UP", 1)
    monkeypatch.setattr(vae_step, "STEPS", 2)
    for name in vae_step.MODELS:
        parts = vae_step.alone(name)
        assert list(parts)[:2] == ["products", "Adam"] and min(parts.values()) > 0
    parts = dict.fromkeys(parts, 0.001) | {"products": 0.004, "Adam": 0.002, "products at torch's default": 0.008}
    repeats = {"script": [{"step": step, "epoch": 4.0} for step in (0.012, 0.015, 0.018)]}
    repeats |= {"alone": [parts] * 3, **{key: [{"step": 0.03, "epoch": 15.0}] * 3 for key in ("in memory", "with PIL")}}
    assert "| unexplained | 1.00 |" in vae_step.tables({"vae_joint": repeats})  # 15 - 4 - 2 - 8
