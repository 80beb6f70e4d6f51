"""One rank's training, from the last checkpoint to the last epoch: steps, statistics, looks, checkpoints.

Knows nothing of Ray: Ray Train's workers, the trials of a sweep and the tests all call it. Whatever ends the run is
decided from numbers that all ranks have, so all end at the same step.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn

from cibhash.checkpoint import Progress
from cibhash.collapse import Thresholds, batch_signals
from cibhash.encoder import HashEncoder
from cibhash.errors import TrainingDiverged
from cibhash.frozen_features import feature_extractor
from cibhash.loop import EpochStats, NotFiniteLoss, Objective, StepStats, train_epoch
from cibhash.selection import CheckpointScores
from cibhash.types import Ids, ViewBatch
from cibhash.weight_average import follow, swapped_in, take_average, with_average
from cluster.training.checkpoints import CheckpointStore
from cluster.training.metrics_log import Row
from cluster.training.monitor import Look, Monitor
from cluster.training.view_batches import Share
from cluster.training_config import TrainConfig

_FROM_RANK_0 = 0


class ViewSource(Protocol):
    """Where batches come from."""

    def steps(self, share: Share) -> int:
        """Steps per epoch."""
        ...

    def epochs(self, first: int, last: int, share: Share, first_step: int = 0) -> Iterator[Iterator[ViewBatch]]:
        """The batches of every epoch."""
        ...


@dataclass(frozen=True)
class Surroundings:
    """What the run is given by whoever starts it; the defaults are those of one process without a cluster."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    distribute: Callable[[nn.Module], nn.Module] = lambda module: module
    """Wraps what learns for several ranks."""
    emit: Callable[[list[Row]], None] = lambda rows: None
    """Takes rows of statistics; only rank 0's are meant."""
    beat: Callable[[int], None] = lambda step: None
    """Is told of every finished step."""


def train_run(
    config: TrainConfig,
    encoder: HashEncoder,
    source: ViewSource,
    share: Share,
    *,
    store: CheckpointStore | None,
    monitor: Monitor | None,
    surroundings: Surroundings | None = None,
) -> None:
    """Trains what learns of `encoder`, in place; at the end it has the averaged weights where they are averaged.

    Args:
        config: Settings.
        encoder: As it was before the first step, on the device; a checkpoint in `store` replaces its weights.
        source: Of batches.
        share: This rank's.
        store: Where checkpoints are; None keeps none and starts from the beginning.
        monitor: On rank 0, unless there are no held-out images.
        surroundings: Of this rank.

    Raises:
        TrainingDiverged: the loss is not finite, or the codes collapsed and the config says to stop; on every rank.
    """
    _Run(config, encoder, source, share, store, monitor, surroundings or Surroundings()).run()


def trained_part(encoder: HashEncoder) -> nn.Module:
    """What learns: the head, or the whole encoder where layers of the backbone do."""
    return encoder if encoder.spec.backbone.trainable else encoder.learned_head


def checkpointed_part(config: TrainConfig, encoder: HashEncoder) -> nn.Module:
    """What a checkpoint holds: what learns, and its average where there is one (`cibhash.weight_average`)."""
    return with_average(trained_part(encoder)) if config.weight_average else trained_part(encoder)


def new_optimizer(config: TrainConfig, encoder: HashEncoder) -> torch.optim.Optimizer:
    """Adam over what learns, with the backbone's own step size for its layers."""
    groups: list[dict[str, Any]] = [{"params": list(encoder.learned_head.parameters()), "lr": config.learning_rate}]
    if encoder.spec.backbone.trainable:
        learned = [parameter for parameter in encoder.backbone.parameters() if parameter.requires_grad]
        groups.append({"params": learned, "lr": config.backbone_learning_rate})
    return torch.optim.Adam(groups, fused=True)


class _Run:
    def __init__(
        self,
        config: TrainConfig,
        encoder: HashEncoder,
        source: ViewSource,
        share: Share,
        store: CheckpointStore | None,
        monitor: Monitor | None,
        surroundings: Surroundings,
    ) -> None:
        self.config, self.encoder, self.source, self.share = config, encoder, source, share
        self.store, self.monitor, self.around = store, monitor, surroundings
        self.trained = trained_part(encoder)
        self.checkpointed = checkpointed_part(config, encoder)
        self.optimizer = new_optimizer(config, encoder)
        self.project = self._projection(surroundings.distribute(self.trained))
        self.objective = Objective(
            config.bits,
            config.temperature,
            config.beta,
            config.code_sampling,
            config.kl_stopgrad,
            config.negatives,
        )
        self.steps = source.steps(share)
        self.steps_done = 0
        self.since_row: list[StepStats] = []
        self.looked: Look | None = None
        self.saved_at = -1

    def run(self) -> None:
        start = self._restore()
        self.steps_done, first = start.steps_done, start.epoch.epoch
        so_far = start.epoch
        for epoch, batches in enumerate(
            self.source.epochs(first, self.config.epochs, self.share, so_far.steps), start=first
        ):
            self.encoder.train()
            self._end_epoch(self._train(epoch, batches, so_far))
            so_far = EpochStats(epoch + 1)
        take_average(self.checkpointed)
        if self.since_row:
            self._emit_steps(())

    def _train(self, epoch: int, batches: Iterator[ViewBatch], so_far: EpochStats) -> EpochStats:
        try:
            return train_epoch(
                self.project,
                self.optimizer,
                self._seeded(batches, so_far),
                self.objective,
                epoch=epoch,
                so_far=so_far,
                seed=self.config.seed,
                after_step=self._after_step,
            )
        except NotFiniteLoss as error:
            raise NotFiniteLoss(
                f"{error}; {self._last_good()}", error.epoch, error.step, self._over_ranks(error.ids)
            ) from None

    def _over_ranks(self, ids: Ids) -> Ids:
        """The ids of all ranks' images of a step."""
        if self.share.world_size == 1:
            return ids
        gathered: list[Any] = [None] * self.share.world_size
        torch.distributed.all_gather_object(gathered, ids)
        return np.concatenate(gathered)

    def _restore(self) -> Progress:
        found = self.store.restore(self.checkpointed, self.optimizer) if self.store is not None else None
        if found is None:
            return Progress(EpochStats(0), 0)
        self.saved_at = found.steps_done
        return found

    def _projection(self, trained: nn.Module) -> Callable[[Tensor], Tensor]:
        """Maps what the source yields, pixels or features, to logits."""
        config, encoder = self.config, self.encoder
        if encoder.spec.backbone.trainable:

            def fine_tuned(images: Tensor) -> Tensor:
                with torch.autocast(images.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                    logits: Tensor = trained(images)
                return logits

            return fine_tuned
        extract = feature_extractor(encoder, precision=config.precision, compiled=config.compiled)

        def from_frozen(views: Tensor) -> Tensor:
            logits: Tensor = trained(encoder.fixed_head(extract(views)) if views.ndim == 4 else views)
            return logits

        return from_frozen

    def _seeded(self, batches: Iterator[ViewBatch], so_far: EpochStats) -> Iterator[ViewBatch]:
        """The batches on the device; torch's own generator, which dropout draws from, is keyed by step and rank."""
        device = self.around.device
        for step, batch in enumerate(batches, start=so_far.steps):
            key = [self.config.seed, so_far.epoch, step, self.share.rank]
            drawn = int(np.random.SeedSequence(key).generate_state(1)[0])
            torch.default_generator.manual_seed(drawn)
            if device.type == "cuda":
                torch.cuda.manual_seed(drawn)
            yield ViewBatch(batch.view_a.to(device), batch.view_b.to(device), batch.ids)

    def _after_step(self, step: StepStats, epoch: EpochStats) -> None:
        self.steps_done += 1
        if isinstance(self.checkpointed, nn.ModuleDict):
            follow(self.checkpointed, self.config.weight_average, self.steps_done)
        self.since_row.append(step)
        self.around.beat(self.steps_done)
        alarms = batch_signals(step.minority, 2 * step.images, Thresholds(), step=self.steps_done)
        if alarms or len(self.since_row) >= self.config.metrics_every:
            self._emit_steps(alarms)
        self._heed(alarms)
        last = epoch.steps == self.steps
        save = self.config.checkpoint_every_steps and self.steps_done % self.config.checkpoint_every_steps == 0
        if self.steps_done % self.config.monitor.every_steps == 0 or (save and not last):
            self._look()
        if save and not last:
            self._save(Progress(epoch, self.steps_done))

    def _end_epoch(self, stats: EpochStats) -> None:
        row = {
            "kind": "epoch",
            "epoch": stats.epoch,
            "step": self.steps_done,
            "steps": stats.steps,
            "loss": stats.loss,
            "contrastive": stats.contrastive,
            "kl": stats.kl,
            "bit_entropy": stats.bit_entropy,
            "images_per_s": stats.images / max(stats.seconds, 1e-9),
        }
        self._emit([row])
        done = stats.epoch + 1
        if done % self.config.checkpoint_every == 0 or done == self.config.epochs:
            self._look()
            self._save(Progress(EpochStats(done), self.steps_done))

    def _look(self) -> None:
        """Rank 0 looks at the held-out images; all heed what it sees."""
        self._check_weights()
        alarms: tuple[str, ...] = ()
        if self.monitor is not None and (self.looked is None or self.looked.row["step"] != self.steps_done):
            self.encoder.eval()
            with swapped_in(self.checkpointed):
                self.looked = self.monitor.look(self.encoder.learned_head, step=self.steps_done)
            self.encoder.train()
            alarms = self.looked.alarms
            self._emit([self.looked.row])
        self._heed(self._told_by_rank_0(alarms))

    def _check_weights(self) -> None:
        """A step with a finite loss may leave weights that are not: they must not become a checkpoint."""
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.trained.parameters()):
            raise TrainingDiverged(f"the weights are not finite after step {self.steps_done}; {self._last_good()}")

    def _told_by_rank_0(self, alarms: tuple[str, ...]) -> tuple[str, ...]:
        if self.share.world_size == 1:
            return alarms
        told: list[Any] = [alarms]
        torch.distributed.broadcast_object_list(told, src=_FROM_RANK_0, device=self.around.device)
        return tuple(told[0])

    def _heed(self, alarms: tuple[str, ...]) -> None:
        if alarms and self.config.monitor.on_collapse == "stop":
            raise TrainingDiverged(
                f"the codes collapsed at step {self.steps_done}: {'; '.join(alarms)}"
                f"; {self._last_good()} (monitor.on_collapse warn goes on)"
            )

    def _save(self, progress: Progress) -> None:
        if self.store is None:
            return
        if self.share.rank == 0 and progress.steps_done != self.saved_at:
            scores: CheckpointScores | None = None
            if self.looked is not None and self.looked.row["step"] == progress.steps_done:
                scores = self.looked.scores
            self.store.save(self.checkpointed, self.optimizer, progress, scores)
        self.saved_at = progress.steps_done

    def _last_good(self) -> str:
        return f"the last good checkpoint is of step {self.saved_at}" if self.saved_at > 0 else "there is no checkpoint"

    def _emit_steps(self, alarms: tuple[str, ...]) -> None:
        """A row with the means since the last one."""
        steps, self.since_row = self.since_row, []
        names = ("loss", "contrastive", "kl", "bit_entropy", "minority")
        means = {name: float(np.mean([getattr(step, name) for step in steps])) for name in names}
        seconds = sum(step.seconds for step in steps)
        row = {
            "kind": "step",
            "epoch": steps[-1].epoch,
            "step": self.steps_done,
            **means,
            "images_per_s": sum(step.images for step in steps) / max(seconds, 1e-9),
            "step_s": seconds / len(steps),
        }
        self._emit([row | ({"alarms": list(alarms)} if alarms else {})])

    def _emit(self, rows: list[Row]) -> None:
        if self.share.rank == 0:
            self.around.emit(rows)
