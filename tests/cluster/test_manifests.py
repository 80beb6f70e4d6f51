"""Manifests: canonical, committed once, and every listed file verified before use."""

import hashlib
import json
from pathlib import Path

import pytest

from cibhash.errors import AlreadyExists, DataError, ManifestMismatch, NotFound
from cibhash.types import TarShard
from cluster import storage
from cluster.code_versions import open_codes
from cluster.manifests import (
    CodeManifest,
    DatasetManifest,
    IndexManifest,
    ListedFile,
    create_manifest,
    load_manifest,
    read_verified,
    same_encoder,
)
from tests.datasets import shape_dataset
from tests.tables import make_code_table


def _dataset(**changes: object) -> DatasetManifest:
    shards = (TarShard("ü.tar", 10, "a" * 64, 3, 0), TarShard("s3://b/c.tar", 20, "b" * 64, 4, 3))
    return DatasetManifest.model_validate({"name": "n", "split": "all", "shards": shards, **changes})


def test_a_manifest_is_read_back_equal_and_byte_for_byte(tmp_path: Path) -> None:
    manifest = _dataset()
    assert create_manifest(str(tmp_path), manifest) == str(tmp_path / "dataset.json")
    content = (tmp_path / "dataset.json").read_bytes()
    found = load_manifest(DatasetManifest, str(tmp_path))
    assert found == manifest
    assert found.to_json() == content
    assert json.loads(content)["format"] == "cibhash-dataset-1"
    assert found.num_samples == 7


def test_a_directory_is_committed_once(tmp_path: Path) -> None:
    create_manifest(str(tmp_path), _dataset())
    with pytest.raises(AlreadyExists, match=r"dataset\.json"):
        create_manifest(str(tmp_path), _dataset(name="other"))
    assert load_manifest(DatasetManifest, str(tmp_path)).name == "n"


def test_a_directory_without_its_manifest_is_not_complete(tmp_path: Path) -> None:
    for cls, noun in ((DatasetManifest, "dataset"), (CodeManifest, "code table"), (IndexManifest, "index")):
        with pytest.raises(NotFound, match=rf"not a complete {noun}: {cls.file_name} is missing"):
            load_manifest(cls, str(tmp_path))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"format": "cibhash-dataset-2"}, "format"),
        ({"unknown": 1}, "unknown"),
        ({"shards": [{"uri": "a.tar"}]}, "shards.0"),
        ({"shards": 3}, "shards"),
        ({"name": None}, "name"),
    ],
)
def test_manifests_of_another_layout_name_the_field(tmp_path: Path, change: dict[str, object], named: str) -> None:
    content = {**json.loads(_dataset().to_json()), **change}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=named) as caught:
        load_manifest(DatasetManifest, str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"\xff\xfe", b"[]"])
def test_what_is_no_manifest_is_a_data_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(DataError, match="broken dataset manifest"):
        load_manifest(DatasetManifest, str(tmp_path))


def test_the_dataset_digest_is_of_content_and_ids_not_of_places() -> None:
    base = _dataset().digest
    first, second = _dataset().shards
    assert _dataset(name="x", split="y").digest == base
    assert _dataset(shards=(TarShard("elsewhere.tar", 10, "a" * 64, 3, 0), second)).digest == base
    for shards in (
        (second, first),
        (first,),
        (TarShard("ü.tar", 10, "c" * 64, 3, 0), second),
        (TarShard("ü.tar", 10, "a" * 64, 2, 0), second),
        (TarShard("ü.tar", 10, "a" * 64, 3, 1), second),
    ):
        assert _dataset(shards=shards).digest != base


def test_the_code_table_digest_is_of_encoder_dataset_and_parts(tmp_path: Path) -> None:
    import numpy as np

    codes = np.arange(40, dtype=np.uint8).reshape(20, 2)
    one = open_codes(make_code_table(tmp_path / "a", codes))
    assert open_codes(make_code_table(tmp_path / "b", codes, encoder_uri="elsewhere")).digest == one.digest
    assert open_codes(make_code_table(tmp_path / "c", codes, encoder_digest="f" * 64)).digest != one.digest
    assert open_codes(make_code_table(tmp_path / "d", codes[:19])).digest != one.digest
    assert open_codes(make_code_table(tmp_path / "e", codes + 1)).digest != one.digest


def test_a_code_table_from_before_there_were_logits_is_read(tmp_path: Path) -> None:
    import numpy as np

    uri = make_code_table(tmp_path / "old", np.zeros((3, 2), np.uint8))
    path = tmp_path / "old/codes.json"
    content = json.loads(path.read_text())
    assert content.pop("logits") is False
    path.write_text(json.dumps(content))
    assert open_codes(uri).logits is False
    logits = np.zeros((3, 16), np.float32)
    assert open_codes(make_code_table(tmp_path / "new", np.zeros((3, 2), np.uint8), logits=logits)).logits is True


def test_listed_files_are_verified_before_use(tmp_path: Path) -> None:
    content = b"0123456789"
    (tmp_path / "a").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    for path in ("a", str(tmp_path / "a")):
        entry = ListedFile(path=path, bytes=10, sha256=digest)
        assert read_verified(str(tmp_path), entry) == content
    (tmp_path / "a").write_bytes(b"0123456788")
    other = hashlib.sha256(b"0123456788").hexdigest()
    with pytest.raises(ManifestMismatch, match=rf"{tmp_path}/a: sha256 {other[:16]}.*{digest[:16]}"):
        read_verified(str(tmp_path), entry)
    (tmp_path / "a").write_bytes(content[:7])
    with pytest.raises(ManifestMismatch, match=r"7 bytes, its manifest says 10"):
        read_verified(str(tmp_path), entry)
    (tmp_path / "a").unlink()
    with pytest.raises(NotFound, match=f"{tmp_path}/a"):
        read_verified(str(tmp_path), entry)


def test_tables_of_two_encoders_are_refused_with_both_digests() -> None:
    assert same_encoder(("a", "1" * 64), ("b", "1" * 64)) == "1" * 64
    with pytest.raises(ManifestMismatch) as caught:
        same_encoder(("uri-a", "1" * 64), ("uri-b", "1" * 64), ("uri-c", "2" * 64))
    for text in ("uri-a", "uri-c", "1" * 16, "2" * 16):
        assert text in str(caught.value)


def test_equal_datasets_have_equal_manifests(tmp_path: Path) -> None:
    uris = [shape_dataset(tmp_path / name, [2, 3]) for name in ("a", "b")]
    assert len({storage.read_bytes(storage.join(uri, "dataset.json")) for uri in uris}) == 1
