"""`cibhash demo`: the whole path on handwritten digits."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cluster.config import DemoConfig
from cluster.training_config import TrainConfig
from jobs.recipe_file import merged, read_recipe
from jobs.runner import run_job

if TYPE_CHECKING:
    from cluster.demo import DemoResult


def run(config: DemoConfig) -> "DemoResult | dict[str, Any]":
    """Does the work; `--dry-run` only tells where everything would go."""
    if config.dry_run:
        from cluster import storage

        return {"output": storage.absolute(config.output)}
    from cluster.demo import run_demo

    recipe = merged(read_recipe("digits"))
    training = TrainConfig.model_validate({**recipe, "dataset": config.output, "output": config.output})
    return run_demo(config, training)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job from the command line; returns the exit code."""
    return run_job("demo", DemoConfig, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
