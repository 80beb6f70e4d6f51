"""Seconds and memory of the loss with its gradient: ours at the global batch, beside the released code's.

    python tests/benchmarks/objective.py [--images 4096] [--released-images 256 512 1024] [--bits 64]

The released cosine holds (2N, 2N, B) values, 17 GB at 4,096 images of 64 bits, several times over: it is measured at
sizes that fit, and the ratio at the full size is scaled by N squared from the largest of them, marked as such. Peak
memory is that of a fresh process: on a CPU all of it, and how much of it the imports took. Goals: under 1 GB, at least
20 times as fast.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cibhash.objective import cibhash_loss
from tests.benchmarks import measuring

RELEASED, OURS = "released", "ours"
_TEMPERATURE, _BETA = 0.3, 0.001
_UNKNOWN: measuring.Row = {"peak_MB": None, "imports_MB": None}


def main() -> None:
    """Checks, measures and prints; or, as a process of its own, tells its peak memory."""
    options = _options()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(json.dumps(_own_memory(options)))
        return
    checks = _check(options)
    rows = []
    for images in options.released_images:
        probabilities = _probabilities(images, options)
        times = measuring.interleaved(
            {name: measuring.clocked(_work(name, probabilities), options) for name in (RELEASED, OURS)},
            options.rounds,
        )
        for name, row in measuring.compared(times, RELEASED).items():
            rows.append({"images": images, "candidate": name, **row, **_UNKNOWN, "scaled": False})
    largest = max(options.released_images)
    if options.images > largest:
        rows += _scaled(options, next(row for row in rows[::-1] if row["candidate"] == RELEASED), largest)
    in_memory = [(OURS, options.images)] if options.quick else [(OURS, options.images), (RELEASED, largest)]
    for row in rows:
        if (row["candidate"], row["images"]) in in_memory and not row["scaled"]:
            row |= _memory(str(row["candidate"]), int(row["images"]), options)
    measuring.report("objective", options, checks, rows)


def _options() -> argparse.Namespace:
    parser = measuring.parser(__doc__)
    parser.add_argument("--images", type=int, default=4096, help="global batch (default 4096)")
    parser.add_argument("--released-images", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--memory-of", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.images, options.released_images, options.rounds = 128, [32, 64], 2
    return options


def _probabilities(images: int, options: argparse.Namespace, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    draws = torch.Generator().manual_seed(options.seed)
    common = torch.randn(images, options.bits, generator=draws, dtype=dtype)
    return tuple(
        torch.sigmoid(common + torch.randn(images, options.bits, generator=draws, dtype=dtype))
        .to(options.device)
        .requires_grad_()
        for _ in range(2)
    )


def _work(name: str, probabilities: tuple[Tensor, ...]) -> Callable[[], tuple[Tensor, ...]]:
    """Loss and gradients, (loss, d p_a, d p_b)."""

    def work() -> tuple[Tensor, ...]:
        if name == RELEASED:
            from tests.benchmarks import released  # torchvision is no part of our memory

            value = released.loss(*probabilities, temperature=_TEMPERATURE, beta=_BETA)
        else:
            value = cibhash_loss(*probabilities, temperature=_TEMPERATURE, beta=_BETA).total
        return (value.detach(), *torch.autograd.grad(value, probabilities))

    return work


def _check(options: argparse.Namespace) -> measuring.Row:
    """Value and gradient in float64, and in float32 at the smallest size that is timed."""
    checks = {}
    for dtype, images, limit in ((torch.float64, 24, 1e-12), (torch.float32, min(options.released_images), 1e-4)):
        probabilities = _probabilities(images, options, dtype)
        expected, found = _work(RELEASED, probabilities)(), _work(OURS, probabilities)()
        off = max(float((b - a).norm() / a.norm()) for a, b in zip(expected, found, strict=True))
        measuring.require(off < limit, f"value and gradient equal the released ones in {dtype}, not {off} off")
        checks[f"off by, {dtype}"] = off
    return checks


def _scaled(options: argparse.Namespace, of: measuring.Row, images: int) -> list[measuring.Row]:
    """Ours at the full size, and the released code's time there as its growth with N squared would have it."""
    work = _work(OURS, _probabilities(options.images, options))
    times = measuring.interleaved({OURS: measuring.clocked(work, options)}, options.rounds)[OURS]
    growth = (options.images / images) ** 2
    median_s, best_s = of["median_s"] * growth, of["best_s"] * growth
    return [
        {"images": options.images, "candidate": RELEASED, "median_s": median_s, "best_s": best_s}
        | {"ratio": 1.0, "ratio_best": 1.0, **_UNKNOWN, "scaled": True},
        {"images": options.images, "candidate": OURS, "median_s": times.median, "best_s": times.best}
        | {"ratio": median_s / times.median, "ratio_best": best_s / times.best}
        | {**_UNKNOWN, "scaled": False},
    ]


def _memory(name: str, images: int, options: argparse.Namespace) -> measuring.Row:
    """Peak memory of a fresh process."""
    command = [sys.executable, __file__, "--memory-of", name, "--images", str(images), "--bits", str(options.bits)]
    command += ["--device", options.device, "--threads", str(options.threads)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    found: measuring.Row = json.loads(answer.stdout)
    return found


def _own_memory(options: argparse.Namespace) -> measuring.Row:
    imports = _peak(options.device)
    work = _work(options.memory_of, _probabilities(options.images, options))
    for _ in range(2):
        work()
    return {"peak_MB": _peak(options.device), "imports_MB": imports}


def _peak(device: str) -> float:
    """Most memory that was held so far, in MB: of the device, or of this process."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    # Not ru_maxrss: a process inherits that of the one it was started by.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10


if __name__ == "__main__":
    main()
