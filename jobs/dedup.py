"""`cibhash dedup`: finds near-duplicates in code tables and what splits share."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cluster.dedup_config import DedupConfig
from jobs.runner import run_job

if TYPE_CHECKING:
    from cluster.dedup.dedup import DedupResult


def run(config: DedupConfig) -> "DedupResult":
    """Does the work; Ray and its kin are imported only once the command line has been understood."""
    from cluster.dedup.dedup import dedup

    return dedup(config)


def table(result: "DedupResult") -> str:
    """What a person sees at the end."""
    from cluster.dedup.tables import format_table

    return format_table(result)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job from the command line; returns the exit code."""
    return run_job("dedup", DedupConfig, run, argv, table=table)


if __name__ == "__main__":
    raise SystemExit(main())
