"""The checkpoints of a run: written file by file under a new name, and there only once `checkpoints.json` lists them.

Knows nothing of the loop. A half-written checkpoint is never listed, so it is never read. The last two are kept, and
the one with the best score; the files of others are removed after the list has moved on.
"""

import math
import secrets
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from cibhash.checkpoint import FILES, PROGRESS, Progress, load_checkpoint, save_checkpoint
from cibhash.errors import DataError, ManifestMismatch, NotFound
from cibhash.selection import CheckpointScores, Rule, choose
from cluster import storage
from cluster.faults import fault_point
from cluster.telemetry import log

INDEX = "checkpoints.json"
_KEPT = 2


class CheckpointEntry(BaseModel):
    """A complete checkpoint."""

    # A score may be NaN, which JSON has no number for; a nested dataclass takes the setting from here.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")
    name: str
    """Its folder."""
    epochs_done: int
    steps_done: int
    progress_sha256: str
    """Of its `progress.json`, which has those of the other files."""
    scores: CheckpointScores | None
    """On the held-out images; None without them."""


class _Index(BaseModel):
    """The content of `checkpoints.json`, oldest first."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    checkpoints: tuple[CheckpointEntry, ...] = ()
    """Those whose files are kept."""
    history: tuple[CheckpointEntry, ...] = ()
    """All that were made."""


class CheckpointStore:
    """The checkpoints below one URI; only one process may save.

    Args:
        uri: Folder of the checkpoints.
        rule: What the best one is chosen by.
        strict: Whether a damaged checkpoint is an error rather than a reason to take the one before.
    """

    def __init__(self, uri: str, *, rule: Rule = "last", strict: bool = False) -> None:
        self.uri, self.rule, self.strict = uri, rule, strict

    def entries(self) -> tuple[CheckpointEntry, ...]:
        """Complete checkpoints, oldest first.

        Raises:
            ManifestMismatch: the list cannot be read.
        """
        return self._index().checkpoints

    def history(self) -> tuple[CheckpointEntry, ...]:
        """All checkpoints that were made, those whose files are gone included, oldest first."""
        return self._index().history

    def _index(self) -> _Index:
        location = storage.join(self.uri, INDEX)
        try:
            return _Index.model_validate_json(storage.read_bytes(location))
        except NotFound:
            return _Index()
        except ValidationError as error:
            raise ManifestMismatch(f"{location}: not a list of checkpoints: {error.errors()[0]['msg']}") from None

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        progress: Progress,
        scores: CheckpointScores | None = None,
    ) -> CheckpointEntry:
        """Commits a checkpoint; the list moves on last."""
        index = self._index()
        before = [entry for entry in index.checkpoints if entry.steps_done < progress.steps_done]
        history = [entry for entry in index.history if entry.steps_done < progress.steps_done]
        name = f"step-{progress.steps_done:09d}-{secrets.token_hex(4)}"
        fault_point("checkpoint.before_files")
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(Path(folder), model, optimizer, progress)
            for file in FILES:
                storage.put_file(Path(folder, file), storage.join(self.uri, name, file))
                fault_point(f"checkpoint.after_{file.split('.')[0]}")
            digest = storage.sha256_of(str(Path(folder, PROGRESS)))[0]
        done = progress.epoch.epoch
        entry = CheckpointEntry(
            name=name, epochs_done=done, steps_done=progress.steps_done, progress_sha256=digest, scores=scores
        )
        every = [*before, entry]
        best = _best(every, self.rule)
        kept = [*every[-_KEPT:], *([best] if best is not None else [])]
        dropped = [item for item in index.checkpoints if item not in kept]
        index = _Index(checkpoints=tuple(item for item in every if item in kept), history=(*history, entry))
        fault_point("checkpoint.before_index")
        storage.write_bytes(storage.join(self.uri, INDEX), (index.model_dump_json(indent=1) + "\n").encode())
        fault_point("checkpoint.after_index")
        for item in dropped:
            for file in FILES:
                storage.remove(storage.join(self.uri, item.name, file))
        return entry

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress | None:
        """Restores the latest checkpoint that is intact; None if there is none at all.

        Raises:
            ManifestMismatch: one is damaged and the store is strict, or all are.
        """
        found = self._first_intact(
            self.entries()[::-1],
            lambda folder: load_checkpoint(folder, model, optimizer),
            "falling back to the one before",
        )
        return found[1] if found is not None else None

    def best(self) -> CheckpointEntry | None:
        """The checkpoint that the rule chooses."""
        return _best(self.entries(), self.rule)

    def load_best(self, model: nn.Module) -> CheckpointEntry | None:
        """Restores the weights of the best checkpoint that is intact; None if there is none at all.

        Raises:
            ManifestMismatch: one is damaged and the store is strict, or all are.
        """
        left, by_rank = list(self.entries()), list[CheckpointEntry]()
        while (best := _best(left, self.rule)) is not None:
            by_rank.append(best)
            left.remove(best)
        found = self._first_intact(by_rank, lambda folder: load_checkpoint(folder, model), "taking the next best")
        return found[0] if found is not None else None

    def _first_intact(
        self, entries: Sequence[CheckpointEntry], load: Callable[[Path], Progress], instead: str
    ) -> tuple[CheckpointEntry, Progress] | None:
        problem = ""
        for entry in entries:
            try:
                return entry, self._load(entry, load)
            except (DataError, NotFound) as error:
                problem = str(error)
            if self.strict:
                raise ManifestMismatch(problem)
            log(f"train: a checkpoint is damaged, {instead}", reason=problem)
        if entries:
            raise ManifestMismatch(f"no checkpoint is intact: {problem}")
        return None

    def _load(self, entry: CheckpointEntry, load: Callable[[Path], Progress]) -> Progress:
        with tempfile.TemporaryDirectory() as folder:
            for file in FILES:
                storage.get_file(storage.join(self.uri, entry.name, file), Path(folder, file))
            location = storage.join(self.uri, entry.name, PROGRESS)
            if (found := storage.sha256_of(str(Path(folder, PROGRESS)))[0]) != entry.progress_sha256:
                raise ManifestMismatch(
                    f"{location}: sha256 {found[:16]}..., {INDEX} says {entry.progress_sha256[:16]}..."
                )
            try:
                return load(Path(folder))
            except ManifestMismatch as error:
                raise ManifestMismatch(str(error).replace(folder, storage.join(self.uri, entry.name))) from None


def _best(entries: Sequence[CheckpointEntry], rule: Rule) -> CheckpointEntry | None:
    """The best by the rule; the last where the rule has nothing to go by."""
    if not entries:
        return None
    scores = [entry.scores or CheckpointScores(math.nan, math.nan) for entry in entries]
    if rule == "last" or all(math.isnan(getattr(score, rule)) for score in scores):
        return entries[-1]
    return entries[choose(scores, rule)]
