"""What is at hand, and the reasons for what is not."""

from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest
from huggingface_hub import constants

from cibhash.specs import BackboneSpec
from cluster import storage
from cluster.manifests import create_manifest
from cluster.packing.split_identity import SplitManifest, SplitPart
from cluster.reproduction.at_hand import Data, find_data, find_weights
from cluster.reproduction.hub import hub_problem
from cluster.reproduction.paper_table import load_table
from cluster.reproduction.published import Protocol
from tests.datasets import make_dataset, shape_sources

SPLITS = ("train", "query", "database")
VGG = BackboneSpec()


def protocol(**sizes: int) -> Protocol:
    return load_table().protocols["cifar10"].model_copy(update={"sizes": sizes})


def packed(folder: Path, name: str = "cifar10/cibhash", splits: Sequence[str] = SPLITS) -> Path:
    for number, split in enumerate(splits):
        make_dataset(folder / split, [shape_sources(3 + number)], split=split)
    if name:
        part = SplitPart(count=3, sha256="0" * 64)
        create_manifest(str(folder), SplitManifest(name=name, seed=None, parts={"query": part}))
    return folder


def look(folder: Path, **sizes: int) -> Data:
    return find_data(str(folder.parent), folder.name, protocol(**sizes), SPLITS)


def test_a_packed_benchmark_is_at_hand(tmp_path: Path) -> None:
    found = look(packed(tmp_path / "cifar10"), query=4, database=5, train=3, validation=9)
    assert (found.reason, found.deviations) == ("", ())
    assert {split: one.num_samples for split, one in found.datasets.items()} == {"train": 3, "query": 4, "database": 5}
    assert found.split.startswith("cifar10/cibhash, ")
    assert found.uri("query") == str(tmp_path / "cifar10" / "query")


def test_what_is_not_the_protocol_is_said(tmp_path: Path) -> None:
    found = look(packed(tmp_path / "cifar10"), query=10_000, database=5)
    assert (found.reason, found.deviations) == ("", ("4 images in query, the protocol has 10,000",))
    unknown = look(packed(tmp_path / "unnamed", name=""), query=4)
    assert (unknown.reason, unknown.split) == ("", "")
    assert unknown.deviations == ("there is no split.json: which images these are is not recorded",)


def test_reasons_of_missing_data(tmp_path: Path) -> None:
    folder = tmp_path / "cifar10"
    expected = f"no data at {folder}: cibhash pack cifar10 --data DOWNLOADS --output {folder}"
    assert look(folder).reason == expected
    assert look(packed(folder, splits=("train", "query"))).reason == f"{folder} has no complete dataset database"
    other = packed(tmp_path / "other", name="cifar10/deephash")
    assert look(other).reason == f"{other} is split cifar10/deephash, expected cifar10/cibhash"
    broken = packed(tmp_path / "broken")
    (broken / "query" / "dataset.json").write_text("{}")
    assert "dataset.json" in look(broken).reason
    empty = packed(tmp_path / "empty", splits=("train", "query"))
    make_dataset(empty / "database", [])
    assert look(empty).reason == f"{empty / 'database'} has no images"


def test_weights_are_found_by_the_name_that_the_recipe_has(tmp_path: Path) -> None:
    own = BackboneSpec(name="mobilenetv2_100", weights="weights/mine.safetensors")
    given = tmp_path / "mine.safetensors"
    missing = find_weights(str(tmp_path), own, offline=True)
    assert missing.reason == f"no weights: mine.safetensors is not in {tmp_path}"
    assert "is not given (--weights)" in find_weights("", own, offline=True).reason
    storage.write_bytes(str(given), b"weights")
    for place in (str(tmp_path), str(given)):
        assert find_weights(place, own, offline=True).weights == str(given)
    beside = BackboneSpec(name="mobilenetv2_100", weights=str(given))
    assert find_weights("", beside, offline=True).weights == str(given)
    assert find_weights("", BackboneSpec(name="convnet-small", weights="none"), offline=True).weights == "none"


def test_a_file_stands_in_for_the_hub(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "vgg16.tv_in1k.safetensors"), b"weights")
    found = find_weights(str(tmp_path), VGG, offline=True)
    assert (found.weights, found.reason) == (str(tmp_path / "vgg16.tv_in1k.safetensors"), "")


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache of this test's own."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "hub"


def test_what_was_downloaded_before_counts_offline(empty_cache: Path) -> None:
    reason = find_weights("folder", VGG, offline=True).reason
    assert reason.startswith("no weights: vgg16.tv_in1k.safetensors is not in folder, and of timm's hub: they were not")
    snapshot = empty_cache / "models--timm--vgg16.tv_in1k" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"weights")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    assert hub_problem(VGG.name, offline=True) == ""


class _Hub(BaseHTTPRequestHandler):
    """Answers for VGG's file, and keeps silent about all others."""

    silence = Event()

    def do_HEAD(self) -> None:
        if "vgg16" not in self.path:
            self.silence.wait(20)
            return
        self.send_response(200)
        for name, value in (("X-Repo-Commit", "abc"), ("ETag", '"e"'), ("Content-Length", "7")):
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""


@pytest.fixture
def hub(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"
    )
    yield
    _Hub.silence.set()
    server.shutdown()
    server.server_close()


def test_the_hub_is_asked_but_not_waited_for(hub: None) -> None:
    assert hub_problem(VGG.name, offline=False, patience_s=20) == ""
    assert hub_problem("resnet50.tv_in1k", offline=False, patience_s=0.3).startswith("the hub ")
    assert hub_problem("convnet-small", offline=False) == "timm has no weights of it"


def test_a_hub_that_is_not_there_is_named(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    )
    assert hub_problem(VGG.name, offline=False, patience_s=20).startswith("the hub cannot be reached (")
