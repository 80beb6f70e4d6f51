"""What a person calls shards: a folder, a pattern, a list, one tar."""

from pathlib import Path

import pytest

from cibhash.errors import ConfigError, DataError, NotFound
from cluster.packing.shard_listing import expand, list_shards


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_a_folder_with_what_img2dataset_leaves_beside(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{n:05d}{suffix}" for n in (1, 0) for suffix in (".tar", ".parquet", "_stats.json")))
    touch(tmp_path, "deep/00002.tar", ".adopt/x.json", "dataset.json", "run_report.json", "LICENSE", "00003.tar.gz")
    listing = list_shards(str(tmp_path))
    assert listing.uris == tuple(str(tmp_path / name) for name in ("00000.tar", "00001.tar", "deep/00002.tar"))
    assert listing.ignored == {"": 1, ".gz": 1, ".json": 2, ".parquet": 2}


def test_patterns() -> None:
    assert expand("s3://b/{008..011}.tar") == [f"s3://b/{name}.tar" for name in ("008", "009", "010", "011")]
    assert expand("{8..11}") == ["8", "9", "10", "11"]
    assert expand("{a,b}/{0..1}.tar") == ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]
    assert expand("plain.tar") == ["plain.tar"]
    for pattern, message in (
        ("{5..3}.tar", r"\{5\.\.3\} counts 0"),
        ("{0..99999999}.tar", "counts 100,000,000"),
        ("{0..9999}{0..9999}.tar", "above 1,000,000 shards"),
        ("{x}.tar", "expected {000..099} or {a,b}"),
        ("{0..3.tar", "not closed"),
        ("{a,{b,c}}.tar", "not closed"),
    ):
        with pytest.raises(ConfigError, match=message):
            expand(pattern)


def test_lists_and_single_tars(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("b.tar\n\n /data/a.tar\ns3://bucket/c.tar\n")
    assert list_shards(str(tmp_path / "list.txt")).uris == ("/data/a.tar", f"{tmp_path}/b.tar", "s3://bucket/c.tar")
    assert list_shards(str(tmp_path / "one.tar")).uris == (f"{tmp_path}/one.tar",)
    (tmp_path / "list.txt").write_text("b.tar\n./b.tar\n")
    with pytest.raises(DataError, match=rf"list\.txt: names {tmp_path}/b\.tar twice"):
        list_shards(str(tmp_path / "list.txt"))
    (tmp_path / "list.txt").write_text("pipe:touch x.tar\n")
    with pytest.raises(ConfigError, match="unsupported location"):
        list_shards(str(tmp_path / "list.txt"))


def test_nothing_to_adopt(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such folder"):
        list_shards(str(tmp_path / "none"))
    with pytest.raises(DataError, match=rf"{tmp_path}: no tar shards there$"):
        list_shards(str(tmp_path))
    touch(tmp_path, "a.tar.gz", "b.parquet")
    with pytest.raises(DataError, match=r"no tar shards there \(other files: 1 \.gz, 1 \.parquet\)"):
        list_shards(str(tmp_path))
