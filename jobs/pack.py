"""`cibhash pack`: packs images into tar shards."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cluster.packing_config import PackConfig
from jobs.runner import run_job

if TYPE_CHECKING:
    from cluster.packing.pack import PackResult


def run(config: PackConfig) -> "PackResult":
    """Does the work; Ray and its kin are imported only once the command line has been understood."""
    from cluster.packing.pack import pack

    return pack(config)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job from the command line; returns the exit code."""
    return run_job("pack", PackConfig, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
