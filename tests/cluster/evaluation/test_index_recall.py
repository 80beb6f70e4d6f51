"""The recall of an index that an evaluation names, against counting by hand."""

from pathlib import Path

import numpy as np
import pytest

from cibhash.errors import ManifestMismatch
from cluster.index.build import build_index
from cluster.index.shard_index import ShardIndex
from cluster.index.versions import open_index
from cluster.index_config import IndexConfig, IvfConfig
from tests.cluster.evaluation.test_evaluate import NUM_QUERIES, Corpus, run
from tests.tables import make_code_table

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]
K = 10


def index_of(tables: dict[str, str], folder: Path, **fields: object) -> str:
    config = {"codes": tables["database"], "output": str(folder), "shards": 2, **fields}
    return build_index(IndexConfig.model_validate(config)).index_uri


def test_recall_is_what_the_index_finds_of_the_nearest(tmp_path: Path) -> None:
    corpus = Corpus()
    tables = corpus.tables(tmp_path, rows_per_part=50)
    uri = index_of(tables, tmp_path / "index", kind="ivf", ivf=IvfConfig(nlist=5, nprobe=1))
    _, record = run(tables, tmp_path / "out", k=K, example_queries=0, index=uri)
    opened = open_index(uri)
    found = np.concatenate(
        [
            ShardIndex.load(opened.base_uri, entry, 64, kind="ivf").search(corpus.codes[:NUM_QUERIES], K).distances
            for entry in opened.manifest.shards
        ],
        axis=1,
    )
    bits = np.unpackbits(corpus.codes, axis=1).astype(np.int64)
    shares = []
    for query in range(NUM_QUERIES):
        exact = np.sort(np.abs(bits[NUM_QUERIES:] - bits[query]).sum(axis=1))[:K]
        shares.append((np.sort(found[query])[:K] <= exact[-1]).mean())
    recall = record["index_recall"]
    assert recall["recall"] == pytest.approx(np.mean(shares))
    assert 0 < recall["recall"] < 1
    assert (recall["version"], recall["k"], recall["num_queries"], recall["shards"]) == ("v000001", K, NUM_QUERIES, 2)
    assert f"finds {recall['recall']:.2%} of the 10 nearest, over 23 queries." in " ".join(record["notes"])


def test_an_exact_index_finds_all_and_a_prefix_of_itself(tmp_path: Path) -> None:
    tables = Corpus().tables(tmp_path, rows_per_part=50)
    for bits in (0, 32):
        uri = index_of(tables, tmp_path / f"index-{bits}", **({"bits": bits} if bits else {}))
        _, record = run(tables, tmp_path / "out", k=K, example_queries=0, index=uri)
        assert (record["index_recall"]["recall"], record["index_recall"]["bits"]) == (1.0, bits or 64)
    _, plain = run(tables, tmp_path / "plain", k=K, example_queries=0)
    assert plain["index_recall"] is None


def test_an_index_of_another_encoder_or_length_is_refused(tmp_path: Path) -> None:
    corpus = Corpus()
    tables = corpus.tables(tmp_path)
    for name, fields, told in (
        ("other", {"encoder_digest": "f" * 64}, "was made by encoder ffffffffffffffff"),
        ("short", {}, "is of codes of 32 bits, .* of 64"),
    ):
        codes = corpus.codes[:, :4] if name == "short" else corpus.codes
        table = make_code_table(tmp_path / name, np.ascontiguousarray(codes), prefixes=(8 * codes.shape[1],), **fields)
        uri = index_of({"database": table}, tmp_path / f"index of {name}")
        with pytest.raises(ManifestMismatch, match=told):
            run(tables, tmp_path / "out", index=uri)
