"""Encoder directories by URI: fetched to read, committed with `encoder.json` last.

Knows nothing of training. A local directory is read in place; an S3 one is fetched into a temporary folder.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cibhash.encoder import ENCODER_FILE, WEIGHT_FILES, HashEncoder, load_encoder, parse_record, save_encoder
from cibhash.errors import AlreadyExists, ManifestMismatch, NotFound
from cluster import storage


@dataclass(frozen=True)
class EncoderInfo:
    """What `encoder.json` alone tells."""

    uri: str
    digest: str
    bits: int
    prefixes: tuple[int, ...]
    image_size: int
    backbone: str


def encoder_info(uri: str) -> EncoderInfo:
    """Reads `encoder.json` of the encoder at `uri`, without its weights.

    Raises:
        NotFound: not an encoder directory, or not finished.
    """
    location = storage.join(uri, ENCODER_FILE)
    try:
        content = storage.read_bytes(location)
    except NotFound:
        raise NotFound(f"{uri}: not a complete encoder: {ENCODER_FILE} is missing") from None
    spec, digest = parse_record(content, location)
    return EncoderInfo(uri, digest, spec.bits, spec.prefixes, spec.image_size, spec.backbone.name)


def open_encoder(uri: str) -> HashEncoder:
    """Loads the encoder at `uri`, its digest verified.

    Raises:
        NotFound: not an encoder directory, or not finished.
        ManifestMismatch: its weights are not those of its digest.
    """
    if not storage.is_s3(uri):
        return load_encoder(Path(uri))
    encoder_info(uri)
    with tempfile.TemporaryDirectory() as folder:
        for name in (*WEIGHT_FILES, ENCODER_FILE):
            storage.get_file(storage.join(uri, name), Path(folder, name))
        try:
            return load_encoder(Path(folder))
        except ManifestMismatch as error:
            raise ManifestMismatch(str(error).replace(folder, uri)) from None


def publish_encoder(encoder: HashEncoder, uri: str) -> str:
    """Commits an encoder directory, `encoder.json` last and create-only; returns its digest.

    Raises:
        AlreadyExists: another encoder is there.
    """
    if storage.exists(storage.join(uri, ENCODER_FILE)):
        raise AlreadyExists(f"{uri}: holds an encoder already")
    with tempfile.TemporaryDirectory() as folder:
        digest = save_encoder(encoder, Path(folder))
        for name in WEIGHT_FILES:
            storage.put_file(Path(folder, name), storage.join(uri, name))
        storage.create_bytes(storage.join(uri, ENCODER_FILE), Path(folder, ENCODER_FILE).read_bytes())
    return digest


@contextlib.contextmanager
def local_weights(weights: str) -> Iterator[str]:
    """Backbone weights as `cibhash.backbones.build_backbone` takes them: a file on S3 is fetched for the block.

    Raises:
        NotFound: the named file is not there.
    """
    if weights in ("hub", "none"):
        yield weights
    elif storage.is_s3(weights):
        with tempfile.TemporaryDirectory() as folder:
            storage.get_file(weights, Path(folder, "weights.safetensors"))
            yield str(Path(folder, "weights.safetensors"))
    elif storage.exists(weights):
        yield storage.absolute(weights)
    else:
        raise NotFound(f"backbone weights {weights!r}: no such file (or use hub, none)")
