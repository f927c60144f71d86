"""The generators of cyclegan_colors.py trained on true pairs: what these networks can be taught.

A row of experiments/translation.py. The loss is the mean L1 distance to the true target.
"""

import torch
import torch.nn.functional as F

import cyclegan_colors
import data
import metrics
import runs

EPOCHS = 10
IMAGES_PER_EPOCH = 12_800
BATCH_SIZE = 32
LEARNING_RATE = 0.002

OUTPUT_DIR = runs.ROOT / "outputs" / "pairs"


def main() -> dict:
    """Trains and scores. Returns the results, which are also written to metrics.json."""
    with runs.start(OUTPUT_DIR, globals(), ()) as run:
        torch.manual_seed(0)
        images, digits = data.load(train=True)
        a, b = data.palette("DOMAIN_A", data.DOMAIN_A), data.palette("DOMAIN_B", data.DOMAIN_B)
        steps, directions = EPOCHS * IMAGES_PER_EPOCH // BATCH_SIZE, {}
        for name, source, target in (("a_to_b", a, b), ("b_to_a", b, a)):
            generator = cyclegan_colors.Generator()
            optimizer = torch.optim.Adam(generator.parameters(), LEARNING_RATE)
            for _ in range(steps):
                index = torch.randint(len(images), (BATCH_SIZE,))
                grey, digit = images[index], digits[index]
                outputs = generator(data.colorize(grey, source[digit]))
                loss = F.l1_loss(outputs, data.colorize(grey, target[digit]))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            directions[name] = metrics.Direction(cyclegan_colors.clamped(generator), source, target)
        results, *_ = metrics.evaluate_translation(directions, *data.load(train=False))
        return run.finish(results, [{"step": steps}])
