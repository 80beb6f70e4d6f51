"""`cibhash plan`: chooses code length, kind, shards and replicas of an index."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cibhash.errors import CIBHashError, ConfigError
from cluster.planning_config import PlanConfig
from jobs.runner import run_job

if TYPE_CHECKING:
    from cluster.planning.plan import PlanResult


def run(config: PlanConfig) -> "PlanResult":
    """Does the work; what it needs is imported only once the command line has been understood."""
    from cluster.planning.plan import plan

    return plan(config)


def table(result: "PlanResult") -> str:
    """What a person sees at the end."""
    from cluster.planning.tables import format_table

    return format_table(result)


def failing(result: "PlanResult") -> CIBHashError | None:
    """The error that the job ends with where nothing does all that is asked."""
    return ConfigError(result.problem) if result.problem else None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job from the command line; returns the exit code."""
    return run_job("plan", PlanConfig, run, argv, table=table, failing=failing)


if __name__ == "__main__":
    raise SystemExit(main())
