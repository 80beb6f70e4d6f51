from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cibhash.errors import AlreadyExists, CIBHashError, ConfigError, DataError, ManifestMismatch, NotFound
from cluster.index.versions import OpenIndex, open_index, publish, switch
from cluster.manifests import IndexManifest, create_manifest
from cluster.versions import current_version, next_version


def manifest(version: str, encoder: str = "e") -> IndexManifest:
    return IndexManifest(
        version=version,
        encoder_digest=encoder * 64,
        encoder_uri="/encoder",
        code_tables=(),
        bits=16,
        prefixes=(16,),
        shards=(),
    )


def race(uri: str, manifests: list[IndexManifest]) -> list[OpenIndex | CIBHashError]:
    def attempt(wanted: IndexManifest) -> OpenIndex | CIBHashError:
        try:
            return publish(uri, wanted)
        except CIBHashError as error:
            return error

    with ThreadPoolExecutor(len(manifests)) as pool:
        return list(pool.map(attempt, manifests))


def test_publish_then_open(tmp_path: Path) -> None:
    uri = str(tmp_path)
    assert (current_version(uri), next_version(uri, IndexManifest.file_name)) == ("", "v000001")
    first = publish(uri, manifest("v000001"))
    assert (tmp_path / "CURRENT").read_text() == "v000001\n"
    assert open_index(uri) == first == OpenIndex(uri, f"{uri}/v000001", manifest("v000001"))
    assert next_version(uri, IndexManifest.file_name) == "v000002"
    publish(uri, manifest("v000002"))
    assert open_index(uri).manifest.version == "v000002"
    assert open_index(uri, "v000001") == first
    assert open_index(uri).digest != first.digest


def test_index_can_be_moved(tmp_path: Path) -> None:
    before = publish(str(tmp_path / "here"), manifest("v000001"))
    (tmp_path / "here").rename(tmp_path / "there")
    after = open_index(str(tmp_path / "there"))
    assert after.base_uri == str(tmp_path / "there" / "v000001")
    assert after.digest == before.digest


def test_one_of_many_publishers_of_a_version_wins(tmp_path: Path) -> None:
    publish(str(tmp_path), manifest("v000001"))
    outcomes = race(str(tmp_path), [manifest("v000002", encoder) for encoder in "0123456789abcdef"])
    (winner,) = [outcome for outcome in outcomes if isinstance(outcome, OpenIndex)]
    losers = [outcome for outcome in outcomes if isinstance(outcome, CIBHashError)]
    assert open_index(str(tmp_path)) == winner
    assert len(losers) == 15
    for loser in losers:
        assert isinstance(loser, AlreadyExists)
        assert "version v000002 exists" in str(loser)


def test_publishers_of_different_versions_never_leave_current_to_a_loser(tmp_path: Path) -> None:
    names = [f"v{number:06d}" for number in range(1, 17)]
    outcomes = race(str(tmp_path), [manifest(name) for name in names])
    winners = [outcome.manifest.version for outcome in outcomes if isinstance(outcome, OpenIndex)]
    assert current_version(str(tmp_path)) in winners
    for name, outcome in zip(names, outcomes, strict=True):
        assert open_index(str(tmp_path), name).manifest.version == name
        if not isinstance(outcome, OpenIndex):
            assert isinstance(outcome, AlreadyExists)
            assert f"version {name} exists but is not current" in str(outcome)


def test_killed_before_current_moved(tmp_path: Path) -> None:
    publish(str(tmp_path), manifest("v000001"))
    create_manifest(str(tmp_path / "v000002"), manifest("v000002"))
    assert open_index(str(tmp_path)).manifest.version == "v000001"
    assert next_version(str(tmp_path), IndexManifest.file_name) == "v000003"
    publish(str(tmp_path), manifest("v000003"))
    assert open_index(str(tmp_path)).manifest.version == "v000003"


def test_killed_before_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "v000001" / "data").mkdir(parents=True)
    assert next_version(str(tmp_path), IndexManifest.file_name) == "v000001"
    with pytest.raises(NotFound, match="CURRENT is missing"):
        open_index(str(tmp_path))


def test_rollback_and_forward(tmp_path: Path) -> None:
    uri = str(tmp_path)
    for number in (1, 2):
        publish(uri, manifest(f"v{number:06d}"))
    assert switch(uri, "v000001") == open_index(uri) == open_index(uri, "v000001")
    assert switch(uri, "v000001").manifest.version == "v000001"
    assert next_version(uri, IndexManifest.file_name) == "v000003"
    switch(uri, "v000002")
    assert current_version(uri) == "v000002"
    with pytest.raises(NotFound, match="v000009"):
        switch(uri, "v000009")
    assert current_version(uri) == "v000002"


def test_current_names_a_missing_version(tmp_path: Path) -> None:
    (tmp_path / "CURRENT").write_text("v000007\n")
    with pytest.raises(NotFound, match=r"version v000007 has no index\.json, but CURRENT names it"):
        open_index(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"v1\n", b"../v000001\n", b"v000001\nv000002\n", b"\xff\xfe"])
def test_current_is_broken(tmp_path: Path, content: bytes) -> None:
    publish(str(tmp_path), manifest("v000001"))
    (tmp_path / "CURRENT").write_bytes(content)
    with pytest.raises(DataError, match=r"CURRENT: .* is not the name of a version"):
        open_index(str(tmp_path))


@pytest.mark.parametrize("name", ["../v000001", "v1", "latest", "v000001/.."])
def test_version_names_are_not_paths(tmp_path: Path, name: str) -> None:
    publish(str(tmp_path), manifest("v000001"))
    with pytest.raises(ConfigError, match="not an index version"):
        open_index(str(tmp_path), name)
    with pytest.raises(ValueError, match="not an index version"):
        publish(str(tmp_path), manifest(name))


def test_manifest_of_another_version(tmp_path: Path) -> None:
    create_manifest(str(tmp_path / "v000001"), manifest("v000002"))
    with pytest.raises(ManifestMismatch, match="of version v000002, expected v000001"):
        open_index(str(tmp_path), "v000001")
