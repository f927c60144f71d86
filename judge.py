"""The judge: a digit classifier that scores pictures. No model that it scores is trained on labels.

    python judge.py              # trains it; its weights are tracked, so no other run has to wait

It sees the maximum over the channels, scaled to a peak of 1, so that colour and brightness do not
matter. Its share right on the 10,000 test digits is in outputs/judge/<DATASET>/metrics.json.
"""

import functools
import hashlib
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import data
import runs

# Changing these changes the ruler, not a model.
EPOCHS = 8
BATCH_SIZE = 120  # images
LEARNING_RATE = 0.004  # peak of the one-cycle schedule
MAX_SHIFT = 2.0  # pixels, in both directions along each axis
MAX_ROTATION = 12.0  # degrees
MAX_SCALE = 0.1  # share of the size, up or down
SEED = 0  # seeds the weights, the order of the images and their deformation

OUTPUT_DIR = runs.ROOT / "outputs" / "judge"


class Judge(nn.Sequential):
    """Images (B, 3, 28, 28) in [0, 1], of any colour → logits of their digits (B, 10)."""

    def __init__(self):
        def block(channels_in: int, channels_out: int) -> list[nn.Module]:
            convolution = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
            return [convolution, nn.BatchNorm2d(channels_out), nn.ReLU()]

        super().__init__(
            *(*block(1, 16), nn.MaxPool2d(2)),  # 14 × 14
            *(*block(16, 32), *block(32, 32), nn.MaxPool2d(2)),  # 7 × 7
            *(*block(32, 64), *block(64, 64), nn.MaxPool2d(2)),  # 3 × 3
            *(nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 3 * 3, 10)),
        )

    def forward(self, x: Tensor) -> Tensor:
        ink = x.amax(1, keepdim=True)  # (B, 1, 28, 28): the grey level, whatever the hue
        return super().forward(ink / ink.amax((2, 3), keepdim=True).clamp(min=1e-6))


def main() -> dict[str, float]:
    """Trains and saves the judge. Returns its shares right on test digits, grey and in colour."""
    with runs.start(Path(OUTPUT_DIR) / str(data.DATASET), globals(), data.RANDOM_COLORS) as run:
        train, test = data.colored_set(train=True, device=run.device), data.colored_set(train=False, device=run.device)
        run.code |= {"images": len(train)}
        white = torch.ones(len(train), 3, device=run.device)
        torch.manual_seed(SEED)
        model = Judge().to(run.device, memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
        steps = EPOCHS * math.ceil(len(train) / BATCH_SIZE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
        for epoch in range(1, EPOCHS + 1):
            model.train()
            batches = torch.randperm(len(train)).to(run.device).split(BATCH_SIZE)
            for index in tqdm(batches, f"epoch {epoch}/{EPOCHS}", leave=False, disable=None):
                x = data.colorize(train.images[index], white[index])
                logits = model(data.deform(x, MAX_SHIFT, MAX_ROTATION, MAX_SCALE))
                loss = F.cross_entropy(logits, train.digits[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            print(f"epoch {epoch:2d}/{EPOCHS}   loss of the last batch {loss.item():.4f}", flush=True)

        model.eval()
        results = {}
        for name, colors in (("grey", white[: len(test)]), ("colored", test.colors)):
            with torch.inference_mode():
                batches = zip(test.images.split(500), colors.split(500), strict=True)
                read = torch.cat([model(data.colorize(*batch)).argmax(1) for batch in batches])
            results[f"judge_{name}"] = (read == test.digits).float().mean().item()
        runs.save_torch(run.folder / "judge.pt", model.state_dict())
        return run.finish(results, [])


def load(device: torch.device) -> Judge:
    """The trained judge of data.DATASET on a device, in eval mode. Trains it if there is none.

    Exits with one sentence if its file is damaged or holds another network.
    """
    path = Path(OUTPUT_DIR) / data.DATASET / "judge.pt"
    if not path.exists():
        print(f"There is no judge for {data.DATASET} yet: training it, once.")
        main()
    return _load(path, device)


def fingerprint(model: Judge) -> str:
    """A hash of its weights, so that results can say which judge scored them."""
    weights = (tensor.cpu().contiguous().numpy().tobytes() for tensor in model.state_dict().values())
    return hashlib.sha256(b"".join(weights)).hexdigest()[:16]


@functools.cache
def _load(path: Path, device: torch.device) -> Judge:
    model = Judge()
    try:
        model.load_state_dict(runs.load_torch(path))
    except (RuntimeError, TypeError, AttributeError):
        raise SystemExit(f"{path} does not hold the weights of a judge: delete it, then run python judge.py.") from None
    return model.to(device, memory_format=torch.channels_last).eval()


if __name__ == "__main__":
    runs.command(main)
