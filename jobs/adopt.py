"""`cibhash adopt`: makes a dataset of tar shards that are there."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cluster.packing_config import AdoptConfig
from jobs.runner import run_job

if TYPE_CHECKING:
    from cluster.packing.adopt import AdoptResult


def run(config: AdoptConfig) -> "AdoptResult":
    """Does the work; Ray and its kin are imported only once the command line has been understood."""
    from cluster.packing.adopt import adopt

    return adopt(config)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job from the command line; returns the exit code."""
    return run_job("adopt", AdoptConfig, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
