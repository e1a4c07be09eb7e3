"""Images per second of augmentation chains on the CPU.

    python benchmarks/augment.py [--threads N] [--repetitions N] [--record FILE]

Chains are timed in turn, round after round, so that whatever else the machine does falls on all of them alike; the
last column is the median time as a multiple of that of normalisation alone in the same rounds.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from budgetnet.augment import Augment
from budgetnet.config import AugmentConfig, load
from budgetnet.train import hardware

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
REFERENCE = load(Path(__file__).parent.parent / "recipes" / "reference.yaml").augment
CHAINS = {
    "normalize": AugmentConfig(),
    "crop, flip, normalize": AugmentConfig(crop_padding=4, flip="random"),
    "reflected crop, alternating flip, cutout": AugmentConfig(
        crop_padding=2, crop_border="reflect", flip="alternate", cutout=12
    ),
    "the reference project's": REFERENCE,
}


def main() -> None:
    """Print a table: chain, batch, images per second (slowest, median and fastest repetition), relative time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=30)
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the figures as JSON, too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    chains = {name: Augment(config, MEAN, STD, seed=0) for name, config in CHAINS.items()}
    rng = torch.Generator().manual_seed(0)

    print(f"torch {torch.__version__}, {options.threads} threads, {options.repetitions} repetitions, 3x32x32 images")
    print(f"{'chain':42} {'batch':>5} {'min/s':>10} {'median/s':>10} {'max/s':>10} {'time':>6}")
    rows = []
    for batch in (128, 512):
        images = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8, generator=rng)
        indices = torch.arange(batch)
        seconds: dict[str, list[float]] = {name: [] for name in chains}
        for repetition in range(options.repetitions + 3):
            for name, augment in chains.items():
                start = time.perf_counter()
                augment(images, indices, 0, rng)
                if repetition >= 3:  # the first ones warm caches and the allocator
                    seconds[name].append(time.perf_counter() - start)
        alone = statistics.median(seconds["normalize"])
        for name, taken in seconds.items():
            median = statistics.median(taken)
            rates = [batch / value for value in (max(taken), median, min(taken))]
            print(f"{name:42} {batch:5} {' '.join(f'{rate:10,.0f}' for rate in rates)} {median / alone:5.1f}x")
            row = {"chain": name, "batch": batch, "relative_time": median / alone}
            rows.append(row | dict(zip(("min", "median", "max"), rates, strict=True)))
    if options.record:
        about = {"unit": "images/s", "repetitions": options.repetitions, "torch": torch.__version__}
        record = about | {"hardware": hardware(torch.device("cpu")), "rows": rows}
        options.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
