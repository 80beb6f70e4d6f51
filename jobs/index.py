"""`cibhash index`: builds a new version of an index, or one that follows from the current version."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cluster.index_config import IndexConfig
from jobs.runner import run_job

if TYPE_CHECKING:
    from cluster.index.index_result import IndexResult


def run(config: IndexConfig) -> "IndexResult":
    """Does the work; Ray and its kin are imported only once the command line has been understood."""
    from cluster.index.build import build_index

    return build_index(config)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job from the command line; returns the exit code."""
    return run_job("index", IndexConfig, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
