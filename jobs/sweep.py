"""`cibhash sweep`: trains many heads on the same cached views and compares them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cluster.training_config import SweepConfig
from jobs.runner import run_job

if TYPE_CHECKING:
    from cluster.training.sweep import SweepResult


def run(config: SweepConfig) -> "SweepResult":
    """Does the work; Ray and its kin are imported only once the command line has been understood."""
    from cluster.training.sweep import sweep

    return sweep(config)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job from the command line; returns the exit code."""
    return run_job("sweep", SweepConfig, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
