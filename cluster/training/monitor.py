"""Looks at images that are not trained on: health of their codes, label-free scores, and the alarm on collapse.

Knows nothing of the training step. Only rank 0 looks; what it decides it tells the others.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cibhash.binary import pack_bits
from cibhash.code_health import CodeHealth, code_health
from cibhash.collapse import Thresholds, collapse_signals
from cibhash.selection import CheckpointScores, float_neighbors, held_out_map, held_out_nt_xent, sep10
from cibhash.types import Labels
from cluster.training.metrics_log import Row

_BLOCK = 256
_ORACLE_K = 100
_NEIGHBORS = 10


@dataclass(frozen=True)
class HeldOut:
    """The held-out images, as features or as pixels: the plain view and two augmented ones."""

    views: tuple[Tensor, Tensor, Tensor]
    """Plain, first and second augmented view: float32 (N, D) features, or uint8 (N, 3, H, W)."""
    labels: Labels | None
    """Only for the oracle that is shown beside the label-free scores."""


class Look(NamedTuple):
    """What one look finds."""

    scores: CheckpointScores
    """Means over the code lengths."""
    alarms: tuple[str, ...]
    row: Row


class Monitor:
    """Looks with whatever has been learned by then.

    Args:
        held_out: The images.
        features: Maps what `held_out` holds to features float (N, D), without gradient; None if it holds features.
        prefixes: Code lengths.
        temperature: Of the held-out contrastive loss.
        batch_size: Of the held-out contrastive loss, the training's.
    """

    def __init__(
        self,
        held_out: HeldOut,
        features: Callable[[Tensor], Tensor] | None,
        *,
        prefixes: tuple[int, ...],
        temperature: float,
        batch_size: int,
    ) -> None:
        self._held_out, self._features, self._prefixes = held_out, features, prefixes
        self._temperature, self._batch_size = temperature, min(batch_size, len(held_out.views[0]))
        self._neighbors = (
            None if features else float_neighbors(held_out.views[0].cpu().numpy(), _num_neighbors(held_out))
        )

    def look(self, project: Callable[[Tensor], Tensor], *, step: int) -> Look:
        """Scores and health of the codes that `project`, features to logits, gives now.

        Args:
            project: In evaluation mode.
            step: Steps done since the beginning.
        """
        plain, view_a, view_b = map(self._in_blocks, self._held_out.views)
        neighbors = self._neighbors
        if neighbors is None:
            neighbors = float_neighbors(plain.cpu().numpy(), _num_neighbors(self._held_out))
        p, p_a, p_b = (torch.sigmoid(self._projected(project, features)) for features in (plain, view_a, view_b))
        scores, values, alarms = [], Row(), list[str]()
        for bits in self._prefixes:
            found = self._scores(p[:, :bits], p_a[:, :bits], p_b[:, :bits], neighbors)
            health = code_health((p_a[:, :bits] > 0.5).cpu().numpy(), (p_b[:, :bits] > 0.5).cpu().numpy())
            alarms += [f"{signal} ({bits} bits)" for signal in collapse_signals(health, Thresholds(), step=step)]
            scores.append(found)
            values |= {f"{name}_{bits}": value for name, value in dataclasses.asdict(found).items()}
        mean = CheckpointScores(
            *(float(np.mean([getattr(s, f.name) for s in scores])) for f in dataclasses.fields(CheckpointScores))
        )
        row = {"kind": "look", "step": step, **_finite(dataclasses.asdict(mean)), **_finite(values), **_named(health)}
        return Look(mean, tuple(alarms), row | ({"alarms": alarms} if alarms else {}))

    def _scores(self, p: Tensor, p_a: Tensor, p_b: Tensor, neighbors: npt.NDArray[np.int64]) -> CheckpointScores:
        codes, labels = pack_bits((p > 0.5).cpu().numpy()), self._held_out.labels
        nt_xent = held_out_nt_xent(p_a, p_b, temperature=self._temperature, batch_size=self._batch_size)
        if labels is None:
            return CheckpointScores(sep10(codes, neighbors), nt_xent)
        return CheckpointScores(
            sep10(codes, neighbors), nt_xent, held_out_map(codes, labels, min(_ORACLE_K, len(codes) - 1))
        )

    def _in_blocks(self, images: Tensor) -> Tensor:
        """Features of what the slice holds."""
        if self._features is None:
            return images
        return torch.cat([self._features(block) for block in torch.split(images, _BLOCK)])

    @staticmethod
    def _projected(project: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
        with torch.no_grad():
            return project(features).float()


def _num_neighbors(held_out: HeldOut) -> int:
    return min(_NEIGHBORS, len(held_out.views[0]) - 1)


def _finite(values: Row) -> Row:
    """Without what is not known, such as the oracle of images without labels."""
    return {name: value for name, value in values.items() if np.isfinite(value)}


def _named(health: CodeHealth) -> Row:
    return {name: value for name, value in dataclasses.asdict(health).items() if name not in ("num_images", "bits")}
