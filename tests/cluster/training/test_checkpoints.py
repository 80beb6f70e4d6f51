"""Checkpoints: what was saved comes back, through deaths at every point of a save and through damaged files."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cibhash.checkpoint import FILES
from cibhash.errors import ManifestMismatch
from cibhash.selection import CheckpointScores, Rule
from cluster import s3_client, storage
from cluster.faults import EXIT_CODE
from cluster.training import checkpoints
from cluster.training.checkpoints import INDEX, CheckpointStore
from tests.s3 import s3_bucket
from tests.training_states import save, trained

__all__ = ["s3_bucket"]


def assert_restores(store: CheckpointStore, step: int) -> None:
    """The latest intact checkpoint is that of `step`, bit for bit, and training goes on from it as if uninterrupted."""
    model, optimizer, _ = trained(0)
    expected_model, expected_optimizer, progress = trained(step)
    assert store.restore(model, optimizer) == progress
    for mine, expected in ((model, expected_model), (optimizer, expected_optimizer)):
        torch.testing.assert_close(mine.state_dict(), expected.state_dict(), rtol=0, atol=0)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path / "new"))
    model, optimizer, _ = trained(0)
    assert (store.entries(), store.history(), store.best(), store.restore(model, optimizer)) == ((), (), None, None)
    assert store.load_best(model) is None
    torch.testing.assert_close(model.state_dict(), trained(0)[0].state_dict(), rtol=0, atol=0)
    assert not (tmp_path / "new").exists()
    for step in (3, 4, 9):
        save(store, step)
        assert_restores(CheckpointStore(str(tmp_path / "new"), strict=True), step)
    assert [(e.epochs_done, e.steps_done) for e in store.history()] == [(0, 3), (1, 4), (2, 9)]


@pytest.mark.parametrize(
    ("rule", "kept", "best"),
    [
        ("sep10", [2, 4, 5], 2),
        ("nt_xent", [2, 4, 5], 2),
        ("oracle", [4, 5], 5),
        ("last", [4, 5], 5),
    ],
)
def test_the_last_two_and_the_best_are_kept(tmp_path: Path, rule: Rule, kept: list[int], best: int) -> None:
    """There is no oracle score here, so its rule has nothing to go by."""
    store = CheckpointStore(str(tmp_path), rule=rule)
    for step, sep10 in ((1, 0.2), (2, 0.9), (3, None), (4, 0.9 - 1e-9), (5, math.nan)):
        save(store, step, sep10)
    entries = store.entries()
    assert [entry.steps_done for entry in entries] == kept
    assert [entry.steps_done for entry in store.history()] == [1, 2, 3, 4, 5]
    assert _names(tmp_path) == {INDEX, *(entry.name for entry in entries)}
    for entry in entries:
        assert _names(tmp_path / entry.name) == set(FILES)
    model = trained(0)[0]
    for found in (store.best(), store.load_best(model)):
        assert found is not None
        assert found.steps_done == best
    torch.testing.assert_close(model.state_dict(), trained(best)[0].state_dict(), rtol=0, atol=0)


def test_scores_that_are_not_numbers_are_kept_as_they_are(tmp_path: Path) -> None:
    """Unlabeled images have no oracle score, and equal codes no separation."""
    store = CheckpointStore(str(tmp_path), rule="sep10")
    for step, scores in enumerate((CheckpointScores(0.5, 2.0), CheckpointScores(math.nan, math.inf, 0.25)), start=1):
        store.save(*trained(step), scores)
    first, second = (entry.scores for entry in CheckpointStore(str(tmp_path)).history())
    assert first is not None
    assert second is not None
    assert (first.sep10, first.nt_xent, math.isnan(first.oracle)) == (0.5, 2.0, True)
    assert (math.isnan(second.sep10), second.nt_xent, second.oracle) == (True, math.inf, 0.25)
    json.loads((tmp_path / INDEX).read_text(), parse_constant=pytest.fail)

    collapsed = CheckpointStore(str(tmp_path / "collapsed"), rule="sep10")
    for step in (1, 2):
        save(collapsed, step, math.nan)
    best = collapsed.best()
    assert best is not None
    assert best.steps_done == 2


def test_a_step_that_is_saved_again_replaces_what_came_after(tmp_path: Path) -> None:
    """As after a fall back; the history does not tell of what was undone."""
    store = CheckpointStore(str(tmp_path))
    for step in (2, 4, 6):
        save(store, step)
    for again in (store, CheckpointStore(str(tmp_path))):
        for step in (4, 6):
            save(again, step)
            assert_restores(CheckpointStore(str(tmp_path), strict=True), step)
            assert [entry.steps_done for entry in again.entries()] == [4, 6][: step // 2 - 1]
    assert [entry.steps_done for entry in store.history()] == [2, 4, 6]
    assert _names(tmp_path) == {INDEX, *(entry.name for entry in store.entries())}


_DYING = """
import os, sys
from cluster.training.checkpoints import CheckpointStore
from tests.training_states import save, trained
trained(1)  # has torch import what it imports at a first step, once for all
for argument in sys.argv[1:]:
    uri, _, point = argument.partition("#")
    pid = os.fork()  # before any thread: the child's S3 client is its own
    if pid:
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        continue
    store = CheckpointStore(uri, rule="sep10")
    for step, sep10 in ((2, 0.9), (4, 0.1), (6, 0.2)):
        save(store, step, sep10)
    os.environ |= {"CIBHASH_FAULT": f"{point}:exit", "CIBHASH_ALLOW_FAULTS": "1"}
    save(CheckpointStore(uri, rule="sep10"), 8, 0.3)
    os._exit(0)
"""


def test_a_death_at_any_point_of_a_save_loses_at_most_that_checkpoint(
    s3_bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_testsuite_property: Callable[[str, object], None],
) -> None:
    points: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "fault_point", points.append)
        save(CheckpointStore(str(tmp_path / "whole"), rule="sep10"), 2)
    assert len(points) == len(set(points)) == len(FILES) + 3
    cases = {f"{base}/{point}": point for base in (str(tmp_path), s3_bucket) for point in points}
    command = [sys.executable, "-c", _DYING, *(f"{uri}#{point}" for uri, point in cases.items())]
    found = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    assert found.stdout.split() == [b"%d" % EXIT_CODE] * len(cases)
    for uri, point in cases.items():
        store = CheckpointStore(uri, rule="sep10", strict=True)
        is_done = point == "checkpoint.after_index"
        assert [entry.steps_done for entry in store.entries()] == [2, *((6, 8) if is_done else (4, 6))]
        assert_restores(store, 8 if is_done else 6)
        best = store.load_best(trained(0)[0])
        assert best is not None
        assert best.steps_done == 2
        for step in (8, 10):
            save(store, step, 0.3)
            assert_restores(store, step)
        assert [entry.steps_done for entry in store.history()] == [2, 4, 6, 8, 10]
    record_testsuite_property("T4 points survived / tested", f"{len(cases)} / {len(cases)}")


def _damages(content: bytes) -> list[bytes]:
    """Cut at some lengths, one bit flipped at many offsets, something appended."""
    size = len(content)
    cuts = [content[:length] for length in sorted({0, 1, size // 2, size - 1})]
    flips = []
    for number in range(40):
        offset = number * (size - 1) // 39
        flips.append(content[:offset] + bytes([content[offset] ^ (1 << number % 8)]) + content[offset + 1 :])
    return [*cuts, *flips, content + b"\0"]


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], record_testsuite_property: Callable[[str, object], None]
) -> None:
    for step in (4, 8):
        save(CheckpointStore(str(tmp_path)), step)
    lenient, strict = CheckpointStore(str(tmp_path)), CheckpointStore(str(tmp_path), strict=True)
    latest = tmp_path / lenient.entries()[-1].name
    planted = detected = 0
    for name in FILES:
        path = latest / name
        content = path.read_bytes()
        for damage in (*_damages(content), None):
            planted += 1
            if damage is None:
                path.unlink()
            else:
                path.write_bytes(damage)
            capsys.readouterr()
            assert_restores(lenient, 4)
            warning = capsys.readouterr().err
            assert warning.count("\n") == 1
            assert "falling back" in warning
            assert str(path) in warning
            with pytest.raises(ManifestMismatch) as caught:
                strict.restore(*trained(0)[:2])
            assert caught.value.exit_code == 3
            assert str(path) in str(caught.value)
            detected += 1
        path.write_bytes(content)
    assert_restores(strict, 8)
    record_testsuite_property("T5 detected / planted", f"{detected} / {planted}")


def test_no_state_is_touched_by_a_damaged_checkpoint(tmp_path: Path) -> None:
    """Where all are damaged the run ends, and what the model and optimizer were is not half replaced."""
    store = CheckpointStore(str(tmp_path))
    for step in (4, 8):
        save(store, step)
    for entry in store.entries():
        path = tmp_path / entry.name / "optimizer.pt"
        path.write_bytes(path.read_bytes()[:-1])
    model, optimizer, _ = trained(2)
    with pytest.raises(ManifestMismatch, match=r"no checkpoint is intact: .*optimizer\.pt") as caught:
        store.restore(model, optimizer)
    assert caught.value.exit_code == 3
    with pytest.raises(ManifestMismatch, match="no checkpoint is intact"):
        store.load_best(model)
    torch.testing.assert_close(model.state_dict(), trained(2)[0].state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(optimizer.state_dict(), trained(2)[1].state_dict(), rtol=0, atol=0)


def test_a_damaged_best_checkpoint_leaves_the_next_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = CheckpointStore(str(tmp_path), rule="sep10")
    for step, sep10 in ((1, 0.9), (2, 0.8), (3, 0.1)):
        save(store, step, sep10)
    damaged = tmp_path / store.entries()[0].name / "weights.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x7f")
    model = trained(0)[0]
    entry = store.load_best(model)
    assert entry is not None
    assert entry.steps_done == 2
    torch.testing.assert_close(model.state_dict(), trained(2)[0].state_dict(), rtol=0, atol=0)
    warning = capsys.readouterr().err
    assert str(damaged) in warning
    assert "next best" in warning
    with pytest.raises(ManifestMismatch, match=str(damaged)):
        CheckpointStore(str(tmp_path), rule="sep10", strict=True).load_best(model)


def test_a_damaged_list_never_leads_to_anything_but_a_whole_checkpoint(tmp_path: Path) -> None:
    """Its own digest is nowhere: what a flipped bit changes without notice is a name or a score, not weights."""
    store = CheckpointStore(str(tmp_path), rule="sep10")
    for step, sep10 in ((4, 0.5), (8, 0.25)):
        save(store, step, sep10)
    content = (tmp_path / INDEX).read_bytes()
    states = {step: trained(step)[2] for step in (4, 8)}
    refused = 0
    for offset in range(0, len(content), 7):
        (tmp_path / INDEX).write_bytes(
            content[:offset] + bytes([content[offset] ^ (1 << offset % 8)]) + content[offset + 1 :]
        )
        model, optimizer, _ = trained(0)
        try:
            progress = store.restore(model, optimizer)
        except ManifestMismatch:
            refused += 1
            continue
        assert progress in states.values()
        assert progress is not None
        expected = trained(progress.steps_done)[0]
        torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=0, atol=0)
    assert refused > 0
    for length in (0, 1, len(content) // 2, len(content) - 3):
        (tmp_path / INDEX).write_bytes(content[:length])
        with pytest.raises(ManifestMismatch, match=INDEX) as caught:
            store.restore(*trained(0)[:2])
        assert caught.value.exit_code == 3


def test_checkpoints_on_s3(s3_bucket: str) -> None:
    store = CheckpointStore(f"{s3_bucket}/run/checkpoints", rule="sep10")
    assert store.restore(*trained(0)[:2]) is None
    for step, sep10 in ((1, 0.9), (2, 0.2), (3, 0.3), (4, 0.1)):
        save(store, step, sep10)
        assert_restores(store, step)
    keys = {item["Key"] for item in s3_client.client().list_objects_v2(Bucket=s3_bucket[5:])["Contents"]}
    kept = [entry.name for entry in store.entries() if entry.steps_done in (1, 3, 4)]
    assert keys == {f"run/checkpoints/{INDEX}", *(f"run/checkpoints/{name}/{file}" for name in kept for file in FILES)}
    damaged = f"{store.uri}/{kept[-1]}/weights.safetensors"
    storage.write_bytes(damaged, storage.read_bytes(damaged)[:-1] + b"\x7f")
    assert_restores(store, 3)
    with pytest.raises(ManifestMismatch, match=damaged):
        CheckpointStore(store.uri, strict=True).restore(*trained(0)[:2])
