"""`cibhash drift`: compares the codes of an old encoder with those of a new one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cluster.drift_config import DriftConfig
from jobs.runner import run_job

if TYPE_CHECKING:
    from cluster.drift.drift import DriftResult


def run(config: DriftConfig) -> "DriftResult":
    """Does the work; Ray and its kin are imported only once the command line has been understood."""
    from cluster.drift.drift import drift

    return drift(config)


def table(result: "DriftResult") -> str:
    """What a person sees at the end."""
    from cluster.drift.tables import format_table

    return format_table(result)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job from the command line; returns the exit code."""
    return run_job("drift", DriftConfig, run, argv, table=table)


if __name__ == "__main__":
    raise SystemExit(main())
