"""The neighbor graph: the definition in plain loops, for any blocks, kept by a rerun, and refused when damaged."""

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from cibhash.errors import ConfigError, DataError, ManifestMismatch, NotFound
from cluster.runtime import root_cause
from cluster.training.neighbor_graph import FeatureBlock, build_graph, load_graph

_CUTS = {1: (0, 90), 2: (0, 41, 90), 3: (0, 1, 60, 90), 7: (0, 5, 10, 30, 31, 55, 89, 90)}


def _features(num_images: int = 90, views: int = 3, columns: int = 12, seed: int = 0) -> np.ndarray:
    """Views (V, N, D) around their image, far from 0; some images are there many times, some have equal views."""
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((num_images, columns)) + 2
    features = images + 0.2 * rng.standard_normal((views, num_images, columns))
    features[:, 20:45] = features[:, 20:21]
    features[:, 70] = features[:, 3]
    features[:, 80] = 0
    return features.astype(np.float32)


def _write(folder: Path, features: np.ndarray, cuts: Sequence[int]) -> list[FeatureBlock]:
    blocks = []
    folder.mkdir()
    for first, last in itertools.pairwise(cuts):
        uris = []
        for view, rows in enumerate(features[:, first:last]):
            uris.append(str(folder / f"{first}-{view}.safetensors"))
            safetensors.numpy.save_file({"features": np.ascontiguousarray(rows)}, uris[-1])
        blocks.append(FeatureBlock(first, last - first, tuple(uris)))
    return blocks


def _unit(vector: list[float]) -> list[float]:
    length = math.sqrt(math.fsum(x * x for x in vector))
    return [x / length for x in vector] if length else vector


def _slow_graph(features: np.ndarray, k: int) -> list[list[int]]:
    """Mean over views, unit length, minus the mean, unit length, inner products; in loops over Python's floats."""
    units = []
    for image in range(features.shape[1]):
        views = features[:, image].astype(float).tolist()
        units.append(_unit([math.fsum(column) / len(views) for column in zip(*views, strict=True)]))
    mean = [math.fsum(column) / len(units) for column in zip(*units, strict=True)]
    vectors = [_unit([x - m for x, m in zip(unit, mean, strict=True)]) for unit in units]
    graph = []
    for image, vector in enumerate(vectors):
        similarities = [math.fsum(x * y for x, y in zip(vector, other, strict=True)) for other in vectors]
        others = (row for row in range(len(vectors)) if row != image)
        graph.append(sorted(others, key=lambda row: (-similarities[row], row))[:k])
    return graph


@pytest.mark.ray
@pytest.mark.parametrize("k", [1, 6])
def test_the_graph_is_that_of_the_definition_for_any_blocks(ray_local: None, tmp_path: Path, k: int) -> None:
    features = _features()
    expected = np.array(_slow_graph(features, k))
    assert expected[30].tolist() == [20, 21, 22, 23, 24, 25][:k]  # copies of one image come by row
    for number, cuts in _CUTS.items():
        blocks = _write(tmp_path / f"in-{number}", features, cuts)
        folder = tmp_path / f"out-{number}"
        found = build_graph(blocks, k=k, folder=str(folder), key="features 0", block_rows=1)
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, expected, err_msg=f"{number} blocks")
        np.testing.assert_array_equal(load_graph(str(folder), "features 0"), expected)
        assert len(list(folder.glob("rows-*.safetensors"))) == number
        assert len(list(folder.iterdir())) == 2 * number + 1  # with their records, and graph.json


@pytest.mark.ray
def test_blocks_are_taken_together_up_to_a_number_of_rows(ray_local: None, tmp_path: Path) -> None:
    features = _features()
    blocks = _write(tmp_path / "in", features, _CUTS[7])
    expected = np.array(_slow_graph(features, 4))
    for block_rows, count in ((90, 1), (54, 3), (1, 7)):
        folder = tmp_path / f"out-{block_rows}"
        found = build_graph(blocks, k=4, folder=str(folder), key="a", block_rows=block_rows)
        np.testing.assert_array_equal(found, expected)
        assert len(list(folder.glob("rows-*.safetensors"))) == count


@pytest.mark.ray
def test_images_that_are_all_the_same_are_neighbors_by_row(ray_local: None, tmp_path: Path) -> None:
    blocks = _write(tmp_path / "in", np.full((2, 30, 5), 0.1, np.float32), (0, 11, 30))
    found = build_graph(blocks, k=2, folder=str(tmp_path / "out"), key="a", block_rows=1)
    assert found.tolist() == [[1, 2], [0, 2]] + [[0, 1]] * 28


@pytest.mark.ray
def test_a_rerun_keeps_what_is_whole_and_makes_the_rest(ray_local: None, tmp_path: Path) -> None:
    features, folder = _features(), tmp_path / "out"
    blocks = _write(tmp_path / "in", features, _CUTS[3])

    def build() -> np.ndarray:
        return build_graph(blocks, k=3, folder=str(folder), key="a", block_rows=1)

    first = build()
    parts = sorted(folder.glob("rows-*.safetensors"))
    content = [path.read_bytes() for path in parts]
    times = [path.stat().st_mtime_ns for path in parts]

    (folder / "graph.json").unlink()
    with pytest.raises(NotFound, match=r"not a complete neighbor graph: graph\.json"):
        load_graph(str(folder), "a")
    parts[0].write_bytes(content[0][:-1] + b"\xff")  # damaged
    parts[1].with_suffix(".json").unlink()  # written, but its run ended before the record
    np.testing.assert_array_equal(build(), first)
    assert [path.read_bytes() for path in parts] == content
    assert [path.stat().st_mtime_ns == time for path, time in zip(parts, times, strict=True)] == [False, False, True]

    for block in blocks:
        for uri in block.uris:
            Path(uri).unlink()
    (folder / "graph.json").unlink()
    np.testing.assert_array_equal(build(), first)
    np.testing.assert_array_equal(build(), first)


@pytest.mark.ray
def test_damage_and_another_key_or_k_are_named(ray_local: None, tmp_path: Path) -> None:
    blocks = _write(tmp_path / "in", _features(), _CUTS[2])
    folder = str(tmp_path / "out")
    build_graph(blocks, k=3, folder=folder, key="a", block_rows=1)
    with pytest.raises(ManifestMismatch, match="made of 'a', expected 'b'"):
        load_graph(folder, "b")
    with pytest.raises(ManifestMismatch, match="made of 'a', expected 'b'"):
        build_graph(blocks, k=3, folder=folder, key="b", block_rows=1)
    with pytest.raises(ManifestMismatch, match=r"\(90, 3\) under key 'a', expected \(90, 4\)"):
        build_graph(blocks, k=4, folder=folder, key="a", block_rows=1)

    manifest = json.loads((tmp_path / "out" / "graph.json").read_text())
    assert (manifest["key"], manifest["k"], manifest["rows"]) == ("a", 3, 90)
    damaged = tmp_path / "out" / manifest["parts"][1]["path"]
    content = bytearray(damaged.read_bytes())
    content[-9] ^= 1
    damaged.write_bytes(content)
    for refused in (lambda: load_graph(folder, "a"), lambda: build_graph(blocks, k=3, folder=folder, key="a")):
        with pytest.raises(ManifestMismatch, match=damaged.name):
            refused()


@pytest.mark.ray
def test_another_key_takes_nothing_over_from_an_unfinished_graph(ray_local: None, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    old, new = _features(seed=1), _features(seed=2)
    build_graph(_write(tmp_path / "old", old, (0, 90)), k=3, folder=str(folder), key="old")
    (folder / "graph.json").unlink()
    found = build_graph(_write(tmp_path / "new", new, (0, 90)), k=3, folder=str(folder), key="new")
    np.testing.assert_array_equal(found, _slow_graph(new, 3))


@pytest.mark.ray
def test_bad_features_are_named(ray_local: None, tmp_path: Path) -> None:
    blocks = _write(tmp_path / "in", _features(), _CUTS[3])

    def refused(bad: dict[str, np.ndarray] | None) -> str:
        path = Path(blocks[1].uris[2])
        kept = path.read_bytes()
        path.write_bytes(safetensors.numpy.save(bad) if bad else b"no safetensors")
        with pytest.raises(Exception) as caught:
            build_graph(blocks, k=3, folder=str(tmp_path / "out"), key="a")
        path.write_bytes(kept)
        error = root_cause(caught.value)
        assert isinstance(error, DataError)
        assert str(error).startswith(str(path))
        return str(error)

    features = np.ones((59, 12), np.float32)
    assert "not a safetensors file" in refused(None)
    assert "tensor `features`" in refused({"codes": features})
    assert "(58, 12), expected 59 rows" in refused({"features": features[:58]})
    assert "11 columns" in refused({"features": features[:, :11].copy()})
    assert "not finite in row 17" in refused({"features": np.where(np.arange(59)[:, None] == 17, np.inf, features)})
    assert not (tmp_path / "out" / "graph.json").exists()


def test_too_few_images_and_wrong_blocks_are_named(tmp_path: Path) -> None:
    block = FeatureBlock(0, 5, ("a",))
    for k in (5, 6):
        with pytest.raises(ConfigError, match=f"{k} neighbors per image, .* only 5 images"):
            build_graph([block], k=k, folder=str(tmp_path), key="a")
    with pytest.raises(ConfigError, match=r"3000 neighbors .* GPU finds at most 2000"):
        build_graph([FeatureBlock(0, 5000, ("a",))], k=3000, folder=str(tmp_path), key="a", use_gpu=True)
    with pytest.raises(ValueError, match="k is 0"):
        build_graph([block], k=0, folder=str(tmp_path), key="a")
    for other in (
        FeatureBlock(4, 5, ("b",)),
        FeatureBlock(6, 5, ("b",)),
        FeatureBlock(5, 0, ("b",)),
        FeatureBlock(5, 5, ()),
    ):
        with pytest.raises(ValueError, match="expected first_row 5"):
            build_graph([block, other], k=1, folder=str(tmp_path), key="a")
