"""SIGKILL in the middle of encoding: the table is that of an undisturbed run, and finished parts are not done again."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.config import EncodeConfig
from tests.datasets import published_encoder, shape_dataset
from tests.encode_kills import Target, finish, strike, table_files

_SHARDS, _IMAGES = 8, 40


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> EncodeConfig:
    folder = tmp_path_factory.mktemp("undisturbed")
    settings = {
        "dataset": shape_dataset(folder / "data", [_IMAGES] * _SHARDS),
        "encoder": published_encoder(folder / "encoder"),
        "output": str(folder / "codes"),
        "batch_size": 8,
        "threads_per_worker": 1,
    }
    config = EncodeConfig.model_validate(settings)
    assert finish(config) == 0
    return config


@pytest.mark.ray
@pytest.mark.parametrize(("target", "survives"), [("actor", True), ("driver", False)])
def test_a_kill_costs_no_more_than_the_shards_in_work(
    undisturbed: EncodeConfig,
    target: Target,
    survives: bool,
    tmp_path: Path,
    record_testsuite_property: Callable[[str, object], None],
) -> None:
    struck = strike(undisturbed.model_copy(update={"output": str(tmp_path / "codes")}), target, _SHARDS // 2)
    assert table_files(str(tmp_path / "codes")) == table_files(undisturbed.output)
    if struck.parts_before < _SHARDS:  # else the run was too fast to be struck
        assert struck.survived == survives
    if not struck.survived:
        assert struck.parts_reused >= struck.parts_before
    record_testsuite_property(
        f"E12, E13 {target}: parts done before, and kept", (struck.parts_before, struck.parts_reused)
    )
