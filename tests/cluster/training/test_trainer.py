"""The train job: the same encoder for any number of workers, after an interruption, and refusals by name."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cibhash.encoder import HashEncoder, load_encoder, new_encoder
from cibhash.encoder import encode as encode_images
from cibhash.errors import ConfigError, CorruptShard, NotFound, TrainingDiverged
from cibhash.images import decode_image
from cibhash.loop import Objective, train_epoch
from cibhash.sampling import steps_per_epoch
from cibhash.shards import SourceImage
from cibhash.views import eval_view, random_view, view_generator
from cluster.config import TrainConfig
from cluster.datasets import open_dataset, shard_samples
from cluster.runtime import root_cause
from cluster.training.trainer import train
from cluster.training.view_batches import CachedViews, FreshViews, Share
from tests.datasets import make_dataset, shape_dataset, shape_sources

_COUNTS = (9, 1, 16)
_SMALL = {"name": "convnet-small", "weights": "none", "image_size": 32}


def _config(dataset: str, output: Path | str, **settings: Any) -> TrainConfig:
    fixed = {
        "dataset": dataset,
        "output": str(output),
        "bits": (8, 16),
        "backbone": _SMALL,
        "hidden": 24,
        "epochs": 4,
        "batch_size": 8,
        "num_streams": 2,
        "threads_per_worker": 1,
        "checkpoint_every": 1,
    }
    return TrainConfig.model_validate({**fixed, **settings})


def _without_ray(config: TrainConfig, source: CachedViews | FreshViews) -> HashEncoder:
    """What the job should train, by one process with plain PyTorch."""
    from cibhash.encoder import EncoderSpec

    encoder = new_encoder(EncoderSpec(config.backbone, config.bits, config.hidden), seed=config.seed).train()
    optimizer = torch.optim.Adam(encoder.head.parameters(), lr=config.learning_rate)

    def project(inputs: Tensor) -> Tensor:
        if inputs.ndim == 2:
            return encoder.head(inputs)  # type: ignore[no-any-return]
        with torch.no_grad():
            features = encoder.features(inputs)
        return encoder.head(features)  # type: ignore[no-any-return]

    share = Share(0, 1, config.streams, config.batch_size, config.seed)
    for epoch in range(config.epochs):
        train_epoch(project, optimizer, source.pairs(epoch, share), Objective(config.bits), epoch=epoch)
    return encoder.eval()


def _assert_same_weights(found: HashEncoder, expected: HashEncoder) -> None:
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-4, atol=2e-5, msg=name)


@pytest.mark.ray
def test_two_workers_train_what_one_process_would(ray_local: None, tmp_path: Path) -> None:
    dataset = shape_dataset(tmp_path / "data", _COUNTS)
    config = _config(dataset, tmp_path / "encoder", num_workers=2)
    result = train(config)
    steps = steps_per_epoch(26, 2, 8)
    assert (result.images, result.epochs, result.steps, result.bits) == (26, 4, 4 * steps, (8, 16))
    assert result.loss is not None
    encoder = load_encoder(tmp_path / "encoder")
    assert encoder.digest == result.encoder_digest
    assert encoder.spec.prefixes == (8, 16)
    assert encoder.spec.training_data == result.dataset_digest == open_dataset(dataset).digest
    with ThreadPoolExecutor(1) as threads:
        source = FreshViews(dataset, open_dataset(dataset).shards, config.views, 32, threads)
        expected = _without_ray(config, source)
    _assert_same_weights(encoder, expected)
    rows = [json.loads(line) for line in (tmp_path / "encoder/metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    assert rows[-1]["loss"] == result.loss

    again = train(config)
    assert again == result, "a run that is complete is returned as it is"


@pytest.mark.ray
def test_cached_views_train_what_one_process_would(ray_local: None, tmp_path: Path) -> None:
    """A frozen timm backbone with batch normalization, two workers; the oracle computes the features itself."""
    dataset = shape_dataset(tmp_path / "data", _COUNTS)
    backbone = {"name": "test_resnet", "weights": "none", "image_size": 32}
    config = _config(dataset, tmp_path / "encoder", backbone=backbone, num_cached_views=3, num_workers=2)
    result = train(config)
    encoder = load_encoder(tmp_path / "encoder")
    assert encoder.digest == result.encoder_digest

    samples = [s for shard in open_dataset(dataset).shards for s in shard_samples(dataset, shard)]
    with torch.inference_mode():
        features = [
            [
                encoder.features(
                    torch.from_numpy(
                        random_view(decode_image(s.image), config.views, 32, view_generator(0, 0, s.id, view))
                    )[None]
                )[0].numpy()
                for s in samples
            ]
            for view in range(3)
        ]
    expected = _without_ray(config, CachedViews(np.array(features, np.float32)))
    assert all(
        torch.equal(a, b) for a, b in zip(encoder.backbone.parameters(), expected.backbone.parameters(), strict=True)
    )
    _assert_same_weights(encoder, expected)
    views = torch.from_numpy(np.stack([eval_view(decode_image(s.image), 32) for s in samples]))
    np.testing.assert_array_equal(encode_images(encoder, views).codes, encode_images(expected, views).codes)


_KILLED_RUN = """
import sys
from cluster.config import RayConfig, TrainConfig
from cluster.runtime import ray_session
from cluster.training.trainer import train
with ray_session(RayConfig(num_cpus=16)):
    import ray
    print(ray._private.worker._global_node.get_session_dir_path(), flush=True)
    train(TrainConfig.model_validate_json(sys.argv[1]))
"""


def _kill_after_first_checkpoint(config: TrainConfig) -> None:
    """Runs the job in a process of its own and kills the driver by SIGKILL as soon as a checkpoint is committed."""
    process = subprocess.Popen(
        [sys.executable, "-c", _KILLED_RUN, config.model_dump_json()], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    session = process.stdout.readline().decode().strip()
    try:
        deadline = time.monotonic() + 200
        while not list(Path(config.output).glob("checkpoints/checkpoint_*/progress.json")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        _end_ray(session)


def _end_ray(session: str) -> None:
    """Waits until the processes of the killed driver's Ray are gone, and ends those that stay."""
    deadline = time.monotonic() + 20
    while pids := _processes_with(session):
        if time.monotonic() > deadline:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
    shutil.rmtree(Path(session).parent, ignore_errors=True)


def _processes_with(text: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            if text.encode() in command and (folder / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_killed_run_continues_and_ends_bit_for_bit_as_an_uninterrupted_one(ray_local: None, tmp_path: Path) -> None:
    dataset = shape_dataset(tmp_path / "data", _COUNTS)
    settings: dict[str, Any] = {"epochs": 60, "checkpoint_every": 12, "backbone": {**_SMALL, "train_from": "all"}}
    whole = train(_config(dataset, tmp_path / "whole", **settings))

    config = _config(dataset, tmp_path / "killed", **settings)
    _kill_after_first_checkpoint(config)
    assert not (tmp_path / "killed/encoder.json").exists()
    for name, value, shown in (("seed", 1, "seed 0.*1"), ("bits", (16,), r"bits \[8, 16\].*\[16\]")):
        with pytest.raises(ConfigError, match=shown):
            train(config.model_copy(update={name: value}))
    resumed = train(config)
    assert resumed.encoder_digest == whole.encoder_digest
    assert (resumed.steps, resumed.loss) == (whole.steps, whole.loss)

    (tmp_path / "killed/encoder.json").unlink()
    assert train(config).encoder_digest == whole.encoder_digest, "killed between the last checkpoint and the encoder"


@pytest.mark.ray
def test_a_diverging_run_ends_with_the_epoch_and_no_encoder(ray_local: None, tmp_path: Path) -> None:
    dataset = shape_dataset(tmp_path / "data", _COUNTS)
    with pytest.raises(Exception) as caught:
        train(_config(dataset, tmp_path / "encoder", temperature=1e-40, max_failures=0))
    cause = root_cause(caught.value)
    assert isinstance(cause, TrainingDiverged)
    assert "epoch 0, step " in str(cause)
    assert not (tmp_path / "encoder/encoder.json").exists()


@pytest.mark.ray
def test_a_corrupt_or_missing_shard_is_named_before_training(ray_local: None, tmp_path: Path) -> None:
    dataset = shape_dataset(tmp_path / "data", _COUNTS)
    path = tmp_path / "data/shard-000002.tar"
    content = path.read_bytes()
    for damage in (content[: 512 * 7], content[:5000] + b"?" + content[5001:], None):
        if damage is None:
            path.unlink()
        else:
            path.write_bytes(damage)
        with pytest.raises(Exception) as caught:
            train(_config(dataset, tmp_path / "encoder"))
        cause = root_cause(caught.value)
        assert isinstance(cause, CorruptShard)
        assert str(path) in str(cause)
    assert not (tmp_path / "encoder/checkpoints").exists()


def test_what_cannot_work_is_refused_before_ray_starts(tmp_path: Path) -> None:
    dataset = shape_dataset(tmp_path / "data", (5,))
    with pytest.raises(ConfigError, match=r"batch_size 8.*5 images"):
        train(_config(dataset, tmp_path / "encoder"))
    with pytest.raises(NotFound, match="nowhere"):
        train(_config(str(tmp_path / "nowhere"), tmp_path / "encoder"))
    backbone = {**_SMALL, "weights": str(tmp_path / "gone.safetensors")}
    config = _config(dataset, tmp_path / "encoder", batch_size=4, backbone=backbone)
    with pytest.raises(NotFound, match=r"gone\.safetensors"):
        train(config)
    assert not (tmp_path / "encoder").exists()


def test_dry_run_touches_nothing(tmp_path: Path) -> None:
    dataset = shape_dataset(tmp_path / "data", _COUNTS)
    result = train(_config(dataset, tmp_path / "encoder", dry_run=True))
    assert (result.images, result.steps, result.loss) == (26, 4 * steps_per_epoch(26, 2, 8), None)
    assert not (tmp_path / "encoder").exists()


@pytest.mark.ray
@pytest.mark.parametrize("num_cached_views", [0, 2])
def test_a_bad_training_image_is_named(ray_local: None, tmp_path: Path, num_cached_views: int) -> None:
    bad = SourceImage("broken/one", "jpg", b"<html>", ())
    dataset = make_dataset(tmp_path / "data", [[*shape_sources(7), bad]])
    config = _config(dataset, tmp_path / "encoder", num_cached_views=num_cached_views, max_failures=0)
    with pytest.raises(Exception) as caught:
        train(config)
    assert "'broken/one'" in str(root_cause(caught.value))
    assert dataclasses.is_dataclass(config.backbone)
