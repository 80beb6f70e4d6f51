"""What every rule chooses, and scores that are not known."""

import math

from cibhash.selection import CheckpointScores
from cluster.training.checkpoints import CheckpointEntry
from cluster.training.selected import Choice, choice, choices


def _entry(number: int, scores: CheckpointScores | None) -> CheckpointEntry:
    return CheckpointEntry(
        name=f"step-{number}", epochs_done=number, steps_done=10 * number, progress_sha256="0", scores=scores
    )


def test_every_rule_chooses_by_its_own_score() -> None:
    entries = [
        _entry(1, CheckpointScores(0.5, 3.0, 0.9)),
        _entry(2, CheckpointScores(0.9, 2.0, 0.4)),
        _entry(3, CheckpointScores(0.9, 1.0, 0.9)),
        _entry(4, CheckpointScores(0.1, 1.5, 0.2)),
    ]
    assert choices(entries) == (
        Choice("sep10", 3, 30, 0.9, 1.0, 0.9),
        Choice("nt_xent", 3, 30, 0.9, 1.0, 0.9),
        Choice("oracle", 3, 30, 0.9, 1.0, 0.9),
        Choice("last", 4, 40, 0.1, 1.5, 0.2),
    )
    assert choices(entries[:2]) == (
        Choice("sep10", 2, 20, 0.9, 2.0, 0.4),
        Choice("nt_xent", 2, 20, 0.9, 2.0, 0.4),
        Choice("oracle", 1, 10, 0.5, 3.0, 0.9),
        Choice("last", 2, 20, 0.9, 2.0, 0.4),
    )


def test_what_is_not_known_is_left_out() -> None:
    unlabeled = [_entry(1, CheckpointScores(0.5, 3.0)), _entry(2, None), _entry(3, CheckpointScores(math.nan, 2.0))]
    assert choices(unlabeled) == (
        Choice("sep10", 1, 10, 0.5, 3.0, None),
        Choice("nt_xent", 3, 30, None, 2.0, None),
        Choice("last", 3, 30, None, 2.0, None),
    )
    assert choices([_entry(1, None)]) == (Choice("last", 1, 10, None, None, None),)
    assert choice("sep10", _entry(1, None)) == Choice("sep10", 1, 10, None, None, None)
