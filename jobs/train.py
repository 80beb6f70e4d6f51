"""`cibhash train`: trains a hash encoder."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cluster.training_config import TrainConfig
from jobs.runner import run_job

if TYPE_CHECKING:
    from cluster.training.trainer import TrainResult


def run(config: TrainConfig) -> "TrainResult":
    """Does the work; Ray and its kin are imported only once the command line has been understood."""
    from cluster.training.trainer import train

    return train(config)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job from the command line; returns the exit code."""
    return run_job("train", TrainConfig, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
