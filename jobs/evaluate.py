"""`cibhash evaluate`: measures retrieval exactly and writes the report."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cluster.evaluation_config import EvaluateConfig
from jobs.runner import run_job

if TYPE_CHECKING:
    from cluster.evaluation.evaluate import EvaluateResult


def run(config: EvaluateConfig) -> "EvaluateResult":
    """Does the work; Ray and its kin are imported only once the command line has been understood."""
    from cluster.evaluation.evaluate import evaluate

    return evaluate(config)


def table(result: "EvaluateResult") -> str:
    """What a person sees at the end."""
    from cluster.evaluation.result_tables import format_table

    return format_table(result)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job from the command line; returns the exit code."""
    return run_job("evaluate", EvaluateConfig, run, argv, table=table)


if __name__ == "__main__":
    raise SystemExit(main())
