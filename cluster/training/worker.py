"""What every Ray Train worker runs: builds its part of the run from the config, and tells the driver of failures.

Knows nothing of the loop. A failure that a restart would only repeat goes to the board: the restarted workers find it
there and end at once, and the driver raises it.
"""

from typing import Any

import cv2
import ray
import ray.train
import ray.train.torch
import torch

from cibhash.errors import ConfigError, DataError, TrainingDiverged
from cibhash.loop import NotFiniteLoss
from cluster.failures import described
from cluster.training.assembly import assemble, checkpoint_store
from cluster.training.preparation import (
    keys_of,
)
from cluster.training.run import Surroundings, train_run
from cluster.training.run_board import Pulse, answer
from cluster.training_config import TrainConfig


def train_worker(arguments: dict[str, Any]) -> None:
    """Trains from the last checkpoint to the last epoch.

    Args:
        arguments: `config`: a TrainConfig as JSON; `board`: a RunBoard.
    """
    board = arguments["board"]
    if answer(board.failure.remote(), ""):
        return
    config = TrainConfig.model_validate(arguments["config"])
    try:
        _train(config, board)
    except TrainingDiverged as error:
        # All ranks are here, so all return, and nothing is restarted.
        ray.get(board.fail.remote(described(_with_keys(config, error))))
    except (ConfigError, DataError) as error:
        ray.get(board.fail.remote(described(error)))
        raise


def _train(config: TrainConfig, board: Any) -> None:
    torch.set_num_threads(config.threads_per_worker)
    cv2.setNumThreads(1)
    context, device = ray.train.get_context(), ray.train.torch.get_device()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    parts = assemble(config, rank=rank, world_size=world_size, device=device)
    pulse = Pulse(board, rank)
    train_run(
        config,
        parts.encoder,
        parts.source,
        parts.share,
        store=checkpoint_store(config),
        monitor=parts.monitor,
        surroundings=Surroundings(
            device=device,
            distribute=lambda module: ray.train.torch.prepare_model(module, move_to_device=False),
            emit=lambda rows: board.add.remote(rows),
            beat=pulse.beat,
        ),
    )
    pulse.stop()


def _with_keys(config: TrainConfig, error: TrainingDiverged) -> TrainingDiverged:
    """The error with the keys of the step's images, where it tells of a step."""
    if not isinstance(error, NotFiniteLoss) or not len(error.ids):
        return error
    keys = keys_of(config.dataset, error.ids)
    listed = ", ".join(repr(key) for key in keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
    return TrainingDiverged(f"{error}; the batch was {listed}")
