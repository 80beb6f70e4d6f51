"""Versions of a code table, found by what they hold."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from cibhash.errors import NotFound
from cluster.code_versions import find_codes, open_codes
from cluster.versions import beside
from tests.changing_tables import ChangingTable
from tests.tables import make_code_table


def test_a_version_is_found_by_its_digest(tmp_path: Path) -> None:
    table = ChangingTable(tmp_path)
    digests = []
    for _ in range(3):
        table.shards.append(table.new_images(3))
        digests.append(open_codes(table.publish()).digest)
    for number, digest in enumerate(digests, 1):
        assert find_codes(str(tmp_path), digest).version == f"v00000{number}"
        assert find_codes(str(tmp_path), digest, "v000002").version == f"v00000{number}"
    shutil.rmtree(tmp_path / "v000001")
    assert find_codes(str(tmp_path), digests[1]).version == "v000002"
    with pytest.raises(NotFound, match=f"no version of this code table has digest {digests[0][:16]}"):
        find_codes(str(tmp_path), digests[0])
    # A table that was rolled back: a later version is found by its name alone.
    (tmp_path / "CURRENT").write_text("v000002\n")
    assert find_codes(str(tmp_path), digests[2], "v000003").version == "v000003"


def test_of_versions_with_one_digest_the_named_one_else_the_oldest(tmp_path: Path) -> None:
    table = ChangingTable(tmp_path)
    table.shards.append(table.new_images(3))
    uri = table.publish()
    table.dataset_uri = "/data/two"
    table.publish()
    digest = open_codes(uri).digest
    assert [find_codes(uri, digest, version).dataset_uri for version in ("", "v000001", "v000002")] == [
        "/data/one",
        "/data/one",
        "/data/two",
    ]


def test_a_table_without_versions(tmp_path: Path) -> None:
    uri = make_code_table(tmp_path, np.zeros((2, 2), np.uint8))
    assert find_codes(uri, open_codes(uri).digest) == open_codes(uri)
    with pytest.raises(NotFound, match="no version"):
        find_codes(uri, "0" * 64)


def test_versions_lie_beside_each_other() -> None:
    assert beside("s3://bucket/index/v000002", "v000001") == "s3://bucket/index/v000001"
    assert beside("/index/v000002/", "v000001") == "/index/v000001"
    assert beside("/index/v000002", "") == "/index/v000002"
