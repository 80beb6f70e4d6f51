"""Encoder directories by URI: committed once, read from folders and S3, and never half."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cibhash.encoder import ENCODER_FILE, encode
from cibhash.errors import AlreadyExists, DataError, ManifestMismatch, NotFound
from cluster import storage
from cluster.encoders import encoder_info, local_weights, open_encoder, publish_encoder
from tests.datasets import published_encoder, tiny_encoder
from tests.s3 import s3_bucket

__all__ = ["s3_bucket"]


def _codes(uri: str) -> bytes:
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return encode(open_encoder(uri), images).codes.tobytes()


def test_published_encoders_are_opened_from_folders_and_s3(tmp_path: Path, s3_bucket: str) -> None:
    encoder = tiny_encoder((8, 16))
    uris = [str(tmp_path / "encoder"), f"{s3_bucket}/models/encoder"]
    digests = {publish_encoder(encoder, uri) for uri in uris}
    assert digests == {open_encoder(uri).digest for uri in uris} == {encoder_info(uri).digest for uri in uris}
    assert _codes(uris[0]) == _codes(uris[1])
    info = encoder_info(uris[1])
    assert (info.uri, info.bits, info.prefixes, info.image_size, info.backbone) == (
        uris[1],
        16,
        (8, 16),
        32,
        "convnet-small",
    )


def test_an_encoder_is_committed_once(tmp_path: Path) -> None:
    uri = published_encoder(tmp_path / "encoder")
    with pytest.raises(AlreadyExists):
        publish_encoder(tiny_encoder(seed=1), uri)
    digest = encoder_info(uri).digest
    assert open_encoder(uri).digest == digest, "losing must not touch what was committed"


def test_unfinished_encoders_are_not_found(tmp_path: Path, s3_bucket: str) -> None:
    for uri in (published_encoder(tmp_path / "encoder"), str(tmp_path / "nowhere"), f"{s3_bucket}/nowhere"):
        if uri.endswith("encoder"):
            (tmp_path / "encoder" / ENCODER_FILE).unlink()
        for action in (open_encoder, encoder_info):
            with pytest.raises(NotFound, match=rf"{uri}: not a complete encoder: {ENCODER_FILE} is missing"):
                action(uri)


def test_altered_weights_on_s3_are_refused_naming_the_encoder(s3_bucket: str) -> None:
    uri = published_encoder(f"{s3_bucket}/encoder")
    name = storage.join(uri, "head.safetensors")
    content = bytearray(storage.read_bytes(name))
    content[-1] ^= 1
    storage.write_bytes(name, bytes(content))
    with pytest.raises(ManifestMismatch, match=encoder_info(uri).digest[:16]) as caught:
        open_encoder(uri)
    assert uri in str(caught.value)


def test_a_broken_record_names_its_place(tmp_path: Path) -> None:
    uri = published_encoder(tmp_path / "encoder")
    (tmp_path / "encoder" / ENCODER_FILE).write_text("{}")
    for action in (open_encoder, encoder_info):
        with pytest.raises(DataError, match=rf"{uri}/{ENCODER_FILE}"):
            action(uri)


def test_weights_are_fetched_for_as_long_as_they_are_needed(tmp_path: Path, s3_bucket: str) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.arange(3.0)}, path)
    storage.put_file(path, f"{s3_bucket}/weights.safetensors")
    for name in ("hub", "none"):
        with local_weights(name) as found:
            assert found == name
    with local_weights(str(path)) as found:
        assert found == str(path)
    with local_weights(f"{s3_bucket}/weights.safetensors") as found:
        assert Path(found).read_bytes() == path.read_bytes()
    assert not Path(found).exists()
    for missing in (str(tmp_path / "gone.safetensors"), f"{s3_bucket}/gone.safetensors"):
        with pytest.raises(NotFound, match=r"gone\.safetensors"), local_weights(missing):
            pass
