"""Encoders: codes by definition, a digest over what decides them, and weights that vouch for themselves."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cibhash.binary import prefix
from cibhash.encoder import (
    ENCODER_FILE,
    WEIGHT_FILES,
    EncoderSpec,
    HashEncoder,
    encode,
    encoder_digest,
    load_encoder,
    new_encoder,
    save_encoder,
)
from cibhash.errors import ConfigError, DataError, ManifestMismatch, NotFound
from cibhash.loop import Objective, train_epoch
from cibhash.rotation import FixedRotation, Rotation
from cibhash.specs import IMAGENET_MEAN, IMAGENET_STD
from cibhash.types import ViewBatch
from tests.datasets import tiny_encoder, tiny_spec


def _images(count: int = 5, seed: int = 0) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=draws)


def _step(seed: int) -> ViewBatch:
    return ViewBatch(_images(8, seed), _images(8, seed + 100), np.arange(8))


def test_codes_are_the_signs_of_the_logits() -> None:
    """Bit j is byte j // 8, bit j % 8, and 1 where the logit is above 0; normalization as written by hand."""
    encoder = tiny_encoder((8, 24))
    spec = encoder.spec.backbone
    with torch.inference_mode():
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (spec.mean, spec.std))
        features = encoder.backbone((_images() / 255.0 - mean) / std)
        logits = encoder.head(features).numpy()
    assert np.abs(logits).min() > 1e-6
    codes, found, found_logits = encode(encoder, _images())
    assert codes.shape == (5, 3)
    assert codes.dtype == np.uint8
    for i in range(5):
        for j in range(24):
            assert (codes[i, j // 8] >> (j % 8)) & 1 == int(logits[i, j] > 0)
    np.testing.assert_allclose(found, features.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found_logits, logits, rtol=1e-4, atol=1e-5)
    assert found.dtype == found_logits.dtype == np.float32
    assert found.shape == (5, encoder.num_features)


def _rotated(dims: int, seed: int = 0) -> HashEncoder:
    """An encoder with a rotation that is filled, for an empty one maps all images to the same code."""
    encoder = new_encoder(dataclasses.replace(tiny_spec((8, 16), name="test_resnet"), rotation=dims), seed=0).eval()
    draws = np.random.default_rng(seed)
    directions, _ = np.linalg.qr(draws.normal(size=(encoder.num_features, dims)))
    rotation = Rotation(encode(encoder, _images(16, seed=5)).features.mean(axis=0).astype(float), directions, 1000.0)
    encoder.fixed_head[0].load_state_dict(FixedRotation.of(rotation).state_dict())
    return encoder


def test_the_head_with_a_rotation_is_that_rotation_and_the_learned_layers() -> None:
    """By hand, from weights alone; the learned part shares its parameters with the head."""
    encoder = _rotated(24)
    with torch.inference_mode():
        features = encoder.features(_images())
        mean, weight = (encoder.state_dict()[f"head.0.{name}"] for name in ("mean", "weight"))
        rows = [(feature - mean) @ weight for feature in features]
        first, _, second = encoder.learned_head
        for row, logits in zip(rows, encoder(_images()), strict=True):
            expected = second.weight @ (first.weight @ row + first.bias).clamp(min=0) + second.bias
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(encoder.fixed_head(features), torch.stack(rows), rtol=1e-4, atol=1e-5)
    assert [tuple(p.shape) for p in encoder.learned_head.parameters()] == [(32, 24), (32,), (16, 32), (16,)]
    assert [id(p) for p in encoder.learned_head.parameters()] == [id(p) for p in encoder.head.parameters()]
    assert not list(encoder.fixed_head.parameters())


def test_without_a_rotation_the_fixed_part_of_the_head_is_nothing() -> None:
    encoder, features = tiny_encoder((8, 16)), torch.rand(3, 1024)
    assert len(encoder.fixed_head) == 0
    assert encoder.fixed_head(features) is features
    assert torch.equal(encoder.learned_head(features), encoder.head(features))
    assert [type(layer) for layer in encoder.learned_head] == [type(layer) for layer in encoder.head]


def test_a_rotation_does_not_learn_and_is_saved_with_the_encoder(tmp_path: Path) -> None:
    encoder = _rotated(24)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.01)
    train_epoch(encoder.train(), optimizer, [_step(seed) for seed in range(3)], Objective((8, 16)), epoch=0)
    changed = {name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"head.{layer}.{kind}" for layer in (1, 3) for kind in ("weight", "bias")}
    digest = save_encoder(encoder.eval(), tmp_path)
    loaded = load_encoder(tmp_path)
    assert (loaded.spec.rotation, loaded.digest) == (24, digest)
    np.testing.assert_array_equal(encode(loaded, _images()).codes, encode(encoder, _images()).codes)
    assert len(np.unique(encode(loaded, _images()).codes, axis=0)) > 1


def test_the_digest_covers_the_rotation() -> None:
    digests = [encoder_digest(encoder) for encoder in (_rotated(24), _rotated(24, seed=1), _rotated(16))]
    assert len(set(digests)) == 3
    assert encoder_digest(_rotated(24)) == digests[0]


def test_a_shorter_code_is_the_beginning_of_the_longer() -> None:
    encoder = tiny_encoder((8, 16, 32))
    assert (encoder.spec.bits, encoder.spec.prefixes, encoder.spec.image_size) == (32, (8, 16, 32), 32)
    codes = encode(encoder, _images()).codes
    np.testing.assert_array_equal(prefix(codes, 16), codes[:, :2])
    assert len(np.unique(codes)) > 3


def test_codes_of_one_image_do_not_depend_on_its_batch() -> None:
    encoder, images = tiny_encoder((32,)), _images(9)
    whole = encode(encoder, images).codes
    single = np.concatenate([encode(encoder, image[None]).codes for image in images])
    np.testing.assert_array_equal(whole, single)


def test_saved_and_loaded_encoders_give_the_same_codes(tmp_path: Path) -> None:
    encoder = tiny_encoder((8, 16), name="test_resnet")
    digest = save_encoder(encoder, tmp_path)
    assert encoder.digest == digest
    assert len(digest) == 64
    loaded = load_encoder(tmp_path)
    assert loaded.digest == digest == json.loads((tmp_path / ENCODER_FILE).read_text())["digest"]
    assert loaded.spec == encoder.spec
    assert not loaded.training
    before, after = encode(encoder, _images()), encode(loaded, _images())
    np.testing.assert_array_equal(before.codes, after.codes)
    np.testing.assert_array_equal(before.features, after.features)
    assert save_encoder(loaded, tmp_path / "again") == digest
    for name in (ENCODER_FILE, *WEIGHT_FILES):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes(), name


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [("convnet-small", IMAGENET_MEAN, IMAGENET_STD), ("test_vit", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))],
)
def test_the_record_holds_the_models_own_mean_and_std(
    tmp_path: Path, name: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    """As numbers, so that what timm says of the model tomorrow changes nothing."""
    spec = tiny_spec((8, 16), name=name)
    assert (spec.backbone.mean, spec.backbone.std) == ((), ())
    encoder = new_encoder(spec, seed=0)
    assert (encoder.spec.backbone.mean, encoder.spec.backbone.std) == (mean, std)
    digest = save_encoder(encoder, tmp_path)
    record = json.loads((tmp_path / ENCODER_FILE).read_text())["backbone"]
    assert (tuple(record["mean"]), tuple(record["std"])) == (mean, std)
    assert encoder_digest(tiny_encoder((8, 16), name=name, mean=mean, std=std)) == digest


def _respecified(encoder: HashEncoder, **backbone: object) -> HashEncoder:
    spec = dataclasses.replace(encoder.spec, backbone=dataclasses.replace(encoder.spec.backbone, **backbone))  # type: ignore[arg-type]
    other = new_encoder(spec, seed=0)
    other.load_state_dict(encoder.state_dict())
    return other


def test_the_digest_changes_with_whatever_decides_codes() -> None:
    digest = encoder_digest(tiny_encoder((8, 16)))
    changed = tiny_encoder((8, 16))
    with torch.no_grad():
        weight = changed.head[2].weight.view(-1).view(torch.int32)  # type: ignore[union-attr, operator]
        weight[0] ^= 1
    others = [
        changed,
        tiny_encoder((8, 24)),
        tiny_encoder((8, 16), seed=1),
        _respecified(tiny_encoder((8, 16)), mean=(0.5, 0.456, 0.406)),
        _respecified(tiny_encoder((8, 16)), std=(0.229, 0.224, 0.2250001)),
        _respecified(tiny_encoder((8, 16)), image_size=40),
    ]
    digests = {encoder_digest(encoder) for encoder in others}
    assert len(digests) == len(others)
    assert digest not in digests


def test_the_digest_ignores_where_the_encoder_came_from() -> None:
    encoder = tiny_encoder((8, 16))
    digest = encoder_digest(encoder)
    for spec in (
        dataclasses.replace(encoder.spec, objective={"name": "cibhash", "beta": 0.5}),
        dataclasses.replace(encoder.spec, training_data="d" * 64),
    ):
        other = new_encoder(spec, seed=0)
        assert encoder_digest(other) == digest
    assert encoder_digest(_respecified(encoder, train_from="all")) == digest
    with_dropout = tiny_encoder((8, 16), name="test_vit")
    assert encoder_digest(_respecified(with_dropout, dropout=True)) == encoder_digest(with_dropout)
    assert encoder_digest(encoder.train()) == digest
    assert encoder_digest(encoder.to(memory_format=torch.channels_last)) == digest  # type: ignore[call-overload]


@pytest.mark.parametrize("name", WEIGHT_FILES)
def test_altered_weights_are_refused_with_both_digests(tmp_path: Path, name: str) -> None:
    digest = save_encoder(tiny_encoder(), tmp_path)
    weights = load_file(tmp_path / name)
    first = next(iter(weights))
    weights[first].view(-1)[0] += 1
    save_file(weights, tmp_path / name)
    with pytest.raises(ManifestMismatch, match=digest[:16]) as caught:
        load_encoder(tmp_path)
    assert str(caught.value).count("...") >= 2
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", WEIGHT_FILES)
def test_damaged_and_missing_weights_are_named(tmp_path: Path, name: str) -> None:
    save_encoder(tiny_encoder(), tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ManifestMismatch, match=name):
        load_encoder(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises((ManifestMismatch, NotFound), match=name):
        load_encoder(tmp_path)


def test_a_changed_record_is_refused(tmp_path: Path) -> None:
    """Another normalization changes codes as other weights would."""
    save_encoder(tiny_encoder(), tmp_path)
    record = json.loads((tmp_path / ENCODER_FILE).read_text())
    for change in (
        {"backbone": {**record["backbone"], "mean": [0.5, 0.5, 0.5]}},
        {"digest": "0" * 64},
    ):
        (tmp_path / ENCODER_FILE).write_text(json.dumps({**record, **change}))
        with pytest.raises(ManifestMismatch):
            load_encoder(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "cibhash-encoder-3"},
        {"bit_order": "big"},
        {"threshold": 0.3},
        {"prefixes": [16, 8]},
        {"prefixes": [12]},
        {"prefixes": []},
        {"bits": 24},
        {"backbone": None},
        {"unknown": 1},
    ],
    ids=str,
)
def test_records_of_another_layout_are_data_errors(tmp_path: Path, change: dict[str, object]) -> None:
    save_encoder(tiny_encoder((8, 16)), tmp_path)
    record = json.loads((tmp_path / ENCODER_FILE).read_text())
    (tmp_path / ENCODER_FILE).write_text(json.dumps({**record, **change}))
    with pytest.raises(DataError, match=ENCODER_FILE):
        load_encoder(tmp_path)


def test_a_record_of_the_first_format_is_refused_by_its_version(tmp_path: Path) -> None:
    save_encoder(tiny_encoder((8, 16)), tmp_path)
    record = json.loads((tmp_path / ENCODER_FILE).read_text())
    for name in ("train_from", "dropout"):
        del record["backbone"][name]
    record["backbone"]["trainable"] = True
    (tmp_path / ENCODER_FILE).write_text(json.dumps({**record, "format": "cibhash-encoder-1"}))
    with pytest.raises(DataError, match="written by another version") as caught:
        load_encoder(tmp_path)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe\0"])
def test_what_is_no_record_is_a_data_error(tmp_path: Path, content: bytes) -> None:
    save_encoder(tiny_encoder(), tmp_path)
    (tmp_path / ENCODER_FILE).write_bytes(content)
    with pytest.raises(DataError, match=ENCODER_FILE):
        load_encoder(tmp_path)


def test_an_unfinished_encoder_is_not_found(tmp_path: Path) -> None:
    save_encoder(tiny_encoder(), tmp_path)
    (tmp_path / ENCODER_FILE).unlink()
    with pytest.raises(NotFound, match=r"not a complete encoder"):
        load_encoder(tmp_path)


def test_a_frozen_backbone_stays_in_evaluation_mode_and_unchanged() -> None:
    """Batch normalization would move with every batch of a backbone in training mode."""
    encoder = tiny_encoder((16,), name="test_resnet").train()
    assert encoder.head.training
    assert not any(module.training for module in encoder.backbone.modules())
    before = {name: value.clone() for name, value in encoder.backbone.state_dict().items()}
    head = {name: value.clone() for name, value in encoder.head.state_dict().items()}
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.01)
    train_epoch(encoder, optimizer, [_step(seed) for seed in range(3)], Objective((16,)), epoch=0)
    assert all(torch.equal(value, before[name]) for name, value in encoder.backbone.state_dict().items())
    assert not any(torch.equal(value, head[name]) for name, value in encoder.head.state_dict().items())


def test_a_backbone_learns_from_the_named_module_on(tmp_path: Path) -> None:
    """What comes before stays as it is, batch statistics too; saved and loaded, the codes are the same."""
    encoder = tiny_encoder((16,), name="test_resnet", train_from="layer3").train()
    before = {name: value.clone() for name, value in encoder.backbone.state_dict().items()}
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.01)
    train_epoch(encoder, optimizer, [_step(seed) for seed in range(3)], Objective((16,)), epoch=0)
    changed = {name for name, value in encoder.backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith(("layer3.", "layer4."))}
    save_encoder(encoder.eval(), tmp_path)
    loaded = load_encoder(tmp_path)
    assert loaded.spec.backbone.train_from == "layer3"
    np.testing.assert_array_equal(encode(loaded, _images()).codes, encode(encoder, _images()).codes)


def test_a_part_to_train_that_is_not_there_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"layers9.*which has layers"):
        tiny_encoder(train_from="layers9")


def test_dropout_of_a_frozen_backbone_is_active_in_training_alone() -> None:
    encoder = tiny_encoder((16,), name="test_vit", dropout=True).train()
    assert not torch.equal(encoder.features(_images()), encoder.features(_images()))
    assert not encoder.features(_images()).requires_grad
    codes = [encode(encoder, _images()) for _ in range(2)]
    np.testing.assert_array_equal(codes[0].features, codes[1].features)
    assert not any(module.training for module in encoder.modules())


def test_a_new_encoder_holds_a_frozen_backbone_in_evaluation_mode() -> None:
    encoder = new_encoder(tiny_spec(name="test_resnet"), seed=0)
    assert encoder.training
    assert not any(module.training for module in encoder.backbone.modules())


def test_a_trainable_backbone_learns() -> None:
    encoder = tiny_encoder((16,), train_from="all").train()
    before = [p.clone() for p in encoder.backbone.parameters()]
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.01)
    train_epoch(encoder, optimizer, [_step(1)], Objective((16,)), epoch=0)
    assert all(not torch.equal(a, b) for a, b in zip(before, encoder.backbone.parameters(), strict=True))


def test_new_encoders_depend_on_the_seed_and_leave_the_global_state_alone() -> None:
    state = torch.random.get_rng_state()
    one, same, other = (new_encoder(tiny_spec(), seed=seed) for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert encoder_digest(one) == encoder_digest(same) != encoder_digest(other)


@pytest.mark.parametrize("prefixes", [(), (16, 8), (8, 8), (12,), (0, 8), (-8, 8)])
def test_code_lengths_that_make_no_code_are_refused(prefixes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="prefixes"):
        EncoderSpec(tiny_spec().backbone, prefixes)
