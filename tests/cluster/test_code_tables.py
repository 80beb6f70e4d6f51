"""Code tables: arrays come back from Parquet as they went in, and damaged parts are refused."""

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cibhash.errors import DataError, ManifestMismatch, NotFound
from cluster import storage
from cluster.code_tables import (
    code_schema,
    codes_of,
    features_of,
    ids_of,
    label_arrays,
    label_lists,
    logits_of,
    packed_array,
    parquet_bytes,
    read_part,
    vector_array,
    write_listed,
)
from cluster.code_versions import open_codes
from tests.tables import make_code_table


def _codes(count: int, width: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, width), dtype=np.uint8)


def test_parts_hold_the_schema_of_the_design(tmp_path: Path) -> None:
    uri = make_code_table(tmp_path, _codes(5))
    schema = read_part(uri, open_codes(uri).parts[0]).schema
    assert {field.name: str(field.type) for field in schema} == {
        "id": "int64",
        "key": "string",
        "code": "fixed_size_binary[3]",
        "labels": "list<element: int32>",
        "shard": "string",
        "offset": "int64",
        "size": "int32",
    }
    assert str(code_schema(16, 4).field("features").type) == "fixed_size_list<item: float>[4]"
    both = code_schema(16, 4, logits=True)
    assert both.names[-2:] == ["features", "logits"]
    assert str(both.field("logits").type) == "fixed_size_list<item: float>[16]"
    assert code_schema(16, logits=True).names[-2:] == ["size", "logits"]


@pytest.mark.parametrize("count", [0, 1, 7, 25])
def test_arrays_come_back_as_they_went_in(tmp_path: Path, count: int) -> None:
    """Also out of a table of several chunks and out of a slice."""
    codes, draws = _codes(count), np.random.default_rng(1)
    features, logits = (draws.normal(size=(count, width)).astype(np.float32) for width in (4, 24))
    ids = np.sort(draws.choice(2**40, count, replace=False)).astype(np.int64)
    labels = [list(range(n % 4)) for n in range(count)]
    columns = {"ids": ids, "labels": labels, "features": features, "logits": logits}
    uri = make_code_table(tmp_path, codes, **columns, rows_per_part=10)
    parts = [read_part(uri, part) for part in open_codes(uri).parts]
    if not parts:
        return
    table = pa.concat_tables(parts)
    for found, want in ((table, slice(None)), (table.slice(3, 9), slice(3, 12))):
        np.testing.assert_array_equal(codes_of(found), codes[want])
        np.testing.assert_array_equal(codes_of(found, 8), codes[want, :1])
        np.testing.assert_array_equal(ids_of(found), ids[want])
        np.testing.assert_array_equal(features_of(found), features[want])
        np.testing.assert_array_equal(logits_of(found), logits[want])
        limits, values = label_lists(found)
        assert [values[a:b].tolist() for a, b in itertools.pairwise(limits)] == labels[want]
        assert (codes_of(found).dtype, ids_of(found).dtype, values.dtype) == (np.uint8, np.int64, np.int64)


def test_empty_tables_keep_their_width() -> None:
    empty = code_schema(24).empty_table()
    assert codes_of(empty).shape == (0, 3)
    assert codes_of(empty, 16).shape == (0, 2)
    assert ids_of(empty).shape == (0,)
    limits, values = label_lists(empty)
    assert (limits.tolist(), values.tolist()) == ([0], [])
    assert features_of(code_schema(24, 5).empty_table()).shape == (0, 5)
    assert logits_of(code_schema(24, logits=True).empty_table()).shape == (0, 24)


def test_only_asked_columns_are_read(tmp_path: Path) -> None:
    uri = make_code_table(tmp_path, _codes(5))
    assert read_part(uri, open_codes(uri).parts[0], ["id", "code"]).column_names == ["id", "code"]


def test_arrays_of_arrow_are_those_of_numpy() -> None:
    codes = _codes(6)[::2]
    assert packed_array(codes).to_pylist() == [row.tobytes() for row in codes]
    assert vector_array(np.arange(6, dtype=np.float32).reshape(2, 3)).to_pylist() == [[0, 1, 2], [3, 4, 5]]


def test_equal_tables_are_equal_files(tmp_path: Path) -> None:
    uris = [make_code_table(tmp_path / name, _codes(30)) for name in ("a", "b")]
    parts = [open_codes(uri).parts[0] for uri in uris]
    assert parts[0] == parts[1]
    table = read_part(uris[0], parts[0])
    assert parquet_bytes(table) == parquet_bytes(read_part(uris[1], parts[1]))


def test_listed_files_say_what_was_written(tmp_path: Path) -> None:
    entry = write_listed(str(tmp_path), "parts/a.bin", b"abc")
    assert (entry.path, entry.bytes, entry.sha256) == ("parts/a.bin", 3, hashlib.sha256(b"abc").hexdigest())
    assert (tmp_path / "parts/a.bin").read_bytes() == b"abc"


def test_damaged_parts_are_refused_by_name(tmp_path: Path) -> None:
    """Empty, half, without footer, one flipped bit, trailing bytes, missing."""
    uri = make_code_table(tmp_path, _codes(30))
    part = open_codes(uri).parts[0]
    path = tmp_path / part.path
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for damage in (b"", content[: len(content) // 2], content[:-8], bytes(flipped), content + b"x"):
        path.write_bytes(damage)
        with pytest.raises(ManifestMismatch, match=part.path):
            read_part(uri, part)
    path.unlink()
    with pytest.raises(NotFound, match=part.path):
        read_part(uri, part)


def test_parts_that_are_listed_but_wrong_are_data_errors(tmp_path: Path) -> None:
    uri = make_code_table(tmp_path, _codes(30))
    part = open_codes(uri).parts[0]
    with pytest.raises(DataError, match=r"30 rows, its manifest says 31"):
        read_part(uri, part.model_copy(update={"rows": 31}))
    listed = write_listed(uri, "parts/other.parquet", b"PAR1 this is no Parquet file PAR1")
    with pytest.raises(DataError, match=r"other\.parquet"):
        read_part(uri, part.model_copy(update=listed.model_dump()))


def test_a_column_that_is_not_there_is_a_data_error(tmp_path: Path) -> None:
    uri = make_code_table(tmp_path, _codes(30))
    with pytest.raises(DataError, match="features"):
        read_part(uri, open_codes(uri).parts[0], ["features"])


def test_an_unfinished_table_is_not_found(tmp_path: Path) -> None:
    uri = make_code_table(tmp_path, _codes(3))
    Path(storage.join(uri, "codes.json")).unlink()
    with pytest.raises(NotFound, match=r"not a complete code table: codes\.json is missing"):
        open_codes(uri)


def test_pages_carry_checksums() -> None:
    values = np.random.default_rng(0).integers(0, 2**62, 1000)
    content = bytearray(parquet_bytes(pa.table({"a": values, "shard": ["x"] * 1000})))
    assert pq.read_table(pa.BufferReader(bytes(content)), page_checksum_verification=True).num_rows == 1000
    content[len(content) // 2] ^= 1
    with pytest.raises((OSError, pa.ArrowException)):
        pq.read_table(pa.BufferReader(bytes(content)), page_checksum_verification=True)


def _lists(*rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
    limits = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return limits, np.array([v for row in rows for v in row], np.int64)


def test_labels_of_one_each_are_integers() -> None:
    one, two = label_arrays(_lists([3], [], [0]), _lists([7]))
    assert (one.tolist(), two.tolist()) == ([3, -1, 0], [7])
    assert one.dtype == two.dtype == np.int64
    (empty,) = label_arrays(_lists())
    assert (empty.tolist(), empty.dtype) == ([], np.int64)


def test_several_labels_anywhere_make_all_tables_matrices_over_one_vocabulary() -> None:
    one, two = label_arrays(_lists([3], [], [10, 0]), _lists([7], [10]))
    vocabulary = [0, 3, 7, 10]
    for found, rows in ((one, [[3], [], [10, 0]]), (two, [[7], [10]])):
        assert found.dtype == np.bool_
        assert found.tolist() == [[v in row for v in vocabulary] for row in rows]


def test_a_label_named_twice_counts_once() -> None:
    (found,) = label_arrays(_lists([5, 5], [6]))
    assert found.tolist() in ([[True, False], [False, True]],)
