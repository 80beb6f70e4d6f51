"""Which checkpoint of a run becomes the encoder, and what the other rules would have chosen.

Knows nothing of files. The rules are those of `cibhash.selection`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from cibhash.selection import CheckpointScores, Rule, choose
from cluster.training.checkpoints import CheckpointEntry


@dataclass(frozen=True)
class Choice:
    """A checkpoint as one rule sees it; a score is None where it is not known."""

    rule: Rule
    epochs: int
    steps: int
    sep10: float | None
    nt_xent: float | None
    oracle: float | None
    """mAP among the held-out images by their labels; shown, and used by the rule `oracle` alone."""


def choices(entries: Sequence[CheckpointEntry]) -> tuple[Choice, ...]:
    """What every rule chooses among all checkpoints that the run made; rules without scores are left out."""
    scores = [entry.scores or CheckpointScores(math.nan, math.nan) for entry in entries]
    found = []
    for rule in get_args(Rule):
        if rule == "last" or any(not math.isnan(getattr(score, rule)) for score in scores):
            found.append(choice(rule, entries[choose(scores, rule)]))
    return tuple(found)


def choice(rule: Rule, entry: CheckpointEntry) -> Choice:
    """One checkpoint, chosen by a rule."""
    scores = entry.scores or CheckpointScores(math.nan, math.nan)
    known = [None if math.isnan(value) else value for value in (scores.sep10, scores.nt_xent, scores.oracle)]
    return Choice(rule, entry.epochs_done, entry.steps_done, *known)
