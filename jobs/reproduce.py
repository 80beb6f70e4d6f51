"""`cibhash reproduce`: runs the rows of the paper's tables that can run, and renders the tables."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cibhash.errors import CIBHashError
from cluster.failures import raise_failure
from cluster.reproduction_config import ReproduceConfig
from cluster.training_config import TrainConfig
from jobs.config_loader import load_config
from jobs.runner import run_job

if TYPE_CHECKING:
    from cluster.reproduction.paper_table import Row
    from cluster.reproduction.reproduce import ReproduceResult


def run(config: ReproduceConfig) -> "ReproduceResult":
    """Does the work; Ray and its kin are imported only once the command line has been understood."""
    from cluster.reproduction.paper_table import load_table, select_rows

    table = load_table(config.table)
    recipes = {row.name: training_of(row) for row in select_rows(table, config.rows)}
    from cluster.reproduction.reproduce import reproduce

    return reproduce(config, table, recipes)


def training_of(row: "Row") -> TrainConfig:
    """What the recipes of a row say; dataset and output are left to be set.

    Raises:
        ConfigError: an unknown recipe, or one that is no config; names the recipe.
    """
    return load_config(TrainConfig, [*row.recipes, "--dataset", "unset", "--output", "unset"], "cibhash train")


def failing(result: "ReproduceResult") -> CIBHashError | None:
    """The error that the job ends with although the tables are written."""
    try:
        raise_failure(result.problem)
    except CIBHashError as error:
        return error
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job from the command line; returns the exit code."""
    return run_job("reproduce", ReproduceConfig, run, argv, failing=failing)


if __name__ == "__main__":
    raise SystemExit(main())
