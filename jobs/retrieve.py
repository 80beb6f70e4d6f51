"""`cibhash retrieve`: finds the neighbors of a whole code table."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cluster.index_config import RetrieveConfig
from jobs.runner import run_job

if TYPE_CHECKING:
    from cluster.index.retrieval import RetrieveResult


def run(config: RetrieveConfig) -> "RetrieveResult":
    """Does the work; Ray and its kin are imported only once the command line has been understood."""
    from cluster.index.retrieval import retrieve

    return retrieve(config)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job from the command line; returns the exit code."""
    return run_job("retrieve", RetrieveConfig, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
