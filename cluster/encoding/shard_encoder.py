"""Encodes one tar shard into one Parquet part; the actor of the encoding pipeline.

Knows nothing of the other shards and of versions. What is committed for a shard is its part, its quarantine part and,
last, a record of both. Their names carry what they are made from: running twice writes the same bytes to the same
names, and the files of a shard that changed stand beside those of what it was.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from cibhash.encoder import Encoded, HashEncoder, encode
from cibhash.errors import BadImage, CIBHashError, ManifestMismatch, NotFound
from cibhash.images import decode_image
from cibhash.types import Sample, TarShard
from cibhash.views import Pixels, eval_view
from cluster import storage
from cluster.code_tables import QUARANTINE_SCHEMA, code_schema, packed_array, parquet_bytes, vector_array, write_listed
from cluster.datasets import shard_samples
from cluster.encoders import open_encoder
from cluster.failures import described
from cluster.manifests import CodePart, QuarantineTable

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_STEM_CHARACTERS = 60


@dataclass(frozen=True)
class EncodingPlan:
    """What every actor of one encode run must know."""

    encoder_uri: str
    encoder_digest: str
    dataset_uri: str
    output_uri: str
    batch_size: int
    features: bool
    logits: bool
    num_threads: int
    use_gpu: bool


class PartRecord(BaseModel):
    """`records/part-*.json`: one shard is done; says for which encoder, and what was written."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    encoder_digest: str
    first_id: int
    """Of the shard when it was encoded: ids shift when a dataset is packed anew."""
    features: int
    logits: bool = False
    part: CodePart
    quarantine: QuarantineTable


class _Row(NamedTuple):
    """What a part keeps of a sample: all but the image itself, so that a shard's images need not fit into memory."""

    id: int
    key: str
    labels: tuple[int, ...]
    offset: int
    size: int


def part_name(plan: EncodingPlan, shard: TarShard) -> str:
    """Base name of everything written for a shard: its own, and a digest of all that decides the content."""
    asked = [plan.encoder_digest, *dataclasses.astuple(shard), plan.features, plan.logits]
    identity = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    stem = _UNSAFE.sub("_", PurePosixPath(shard.uri).stem)[-_STEM_CHARACTERS:]
    return f"{stem}-{identity[:16]}"


def read_record(plan: EncodingPlan, shard: TarShard) -> PartRecord | None:
    """The record of a shard if it is done, was made from this shard by this encoder, and its files are intact."""
    name = part_name(plan, shard)
    try:
        content = storage.read_bytes(storage.join(plan.output_uri, "records", f"{name}.json"))
        record = PartRecord.model_validate_json(content)
    except (NotFound, ValidationError):
        return None
    part = record.part
    if (record.encoder_digest, part.shard, part.shard_sha256) != (plan.encoder_digest, shard.uri, shard.sha256):
        return None
    if (record.first_id, part.rows_in) != (shard.first_id, shard.count):
        return None
    for listed in (part, record.quarantine):
        try:
            found = storage.sha256_of(storage.join(plan.output_uri, listed.path))
        except NotFound:
            return None
        if found != (listed.sha256, listed.bytes):
            return None
    return record


class ShardEncoder:
    """Holds the encoder for the life of an actor and encodes shards."""

    def __init__(self, plan: EncodingPlan) -> None:
        torch.set_num_threads(plan.num_threads)
        self.plan = plan
        self.decoders = ThreadPoolExecutor(plan.num_threads)

    @functools.cached_property
    def encoder(self) -> HashEncoder:
        """The plan's encoder; not loaded by the constructor, for what fails there reaches the driver as text only.

        Raises:
            ManifestMismatch: the encoder is not, or no longer, the plan's.
        """
        encoder = open_encoder(self.plan.encoder_uri)
        if encoder.digest != self.plan.encoder_digest:
            raise ManifestMismatch(
                f"{self.plan.encoder_uri}: encoder {encoder.digest[:16]}..., it was {self.plan.encoder_digest[:16]}..."
            )
        return encoder.cuda() if self.plan.use_gpu else encoder

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Encodes the shards in a batch of rows `shard` (JSON).

        Returns:
            Columns `record` (JSON) and `failure`, one of them empty: `error_class message` of an error of this
            project. Ray Data would wrap a raised one and lose its class.
        """
        records, failures = [], []
        for shard in batch["shard"]:
            try:
                record, failure = self.encode_shard(TarShard(**json.loads(shard))).model_dump_json(), ""
            except CIBHashError as error:
                record, failure = "", described(error)
            records.append(record)
            failures.append(failure)
        return {"record": np.array(records, dtype=object), "failure": np.array(failures, dtype=object)}

    def encode_shard(self, shard: TarShard) -> PartRecord:
        """Encodes one shard and commits its part, its quarantine part and their record."""
        done: list[tuple[list[_Row], Encoded]] = []
        refused: list[tuple[_Row, str]] = []
        for batch, views in self._batches(shard, refused):
            done.append((batch, self._encode(views)))
        rows = [row for batch, _ in done for row in batch]
        name = part_name(self.plan, shard)
        part = write_listed(self.plan.output_uri, f"parts/{name}.parquet", parquet_bytes(self._table(shard, done)))
        quarantine = write_listed(
            self.plan.output_uri, f"quarantine/{name}.parquet", parquet_bytes(_quarantine_table(shard, refused))
        )
        ids = [row.id for row in rows] or [shard.first_id]
        record = PartRecord(
            encoder_digest=self.plan.encoder_digest,
            first_id=shard.first_id,
            features=self.encoder.num_features if self.plan.features else 0,
            logits=self.plan.logits,
            part=CodePart(
                **part.model_dump(),
                shard=shard.uri,
                shard_sha256=shard.sha256,
                rows_in=len(rows) + len(refused),
                rows=len(rows),
                quarantined=len(refused),
                min_id=min(ids),
                max_id=max(ids),
            ),
            quarantine=QuarantineTable(**quarantine.model_dump(), rows=len(refused)),
        )
        storage.write_bytes(
            storage.join(self.plan.output_uri, "records", f"{name}.json"), record.model_dump_json(indent=1).encode()
        )
        return record

    def _batches(self, shard: TarShard, refused: list[tuple[_Row, str]]) -> Iterator[tuple[list[_Row], list[Pixels]]]:
        """Full batches of decoded samples; what cannot be decoded goes to `refused`."""
        size = self.encoder.spec.image_size
        waiting: list[tuple[_Row, Pixels]] = []
        stream = shard_samples(self.plan.dataset_uri, shard)
        while chunk := list(itertools.islice(stream, self.plan.batch_size)):
            for sample, view in zip(chunk, self.decoders.map(lambda s: _decode(s, size), chunk), strict=True):
                row = _Row(sample.id, sample.key, sample.labels, sample.offset, len(sample.image))
                if isinstance(view, str):
                    refused.append((row, view))
                else:
                    waiting.append((row, view))
            if len(waiting) >= self.plan.batch_size:
                yield _columns(waiting[: self.plan.batch_size])
                del waiting[: self.plan.batch_size]
        if waiting:
            yield _columns(waiting)

    def _encode(self, views: Sequence[Pixels]) -> Encoded:
        """Encodes a batch; a short one is padded, so that rows do not depend on how full their batch was."""
        images = np.zeros((self.plan.batch_size, *views[0].shape), np.uint8)
        images[: len(views)] = views
        codes, features, logits = encode(self.encoder, torch.from_numpy(images))
        return Encoded(codes[: len(views)], features[: len(views)], logits[: len(views)])

    def _table(self, shard: TarShard, done: list[tuple[list[_Row], Encoded]]) -> pa.Table:
        width = self.encoder.num_features if self.plan.features else 0
        schema = code_schema(self.encoder.spec.bits, width, logits=self.plan.logits)
        if not done:
            return schema.empty_table()
        rows = [row for batch, _ in done for row in batch]
        columns = [
            pa.array([row.id for row in rows], pa.int64()),
            pa.array([row.key for row in rows], pa.string()),
            packed_array(np.concatenate([encoded.codes for _, encoded in done])),
            pa.array([list(row.labels) for row in rows], pa.list_(pa.int32())),
            pa.array([shard.uri] * len(rows), pa.string()),
            pa.array([row.offset for row in rows], pa.int64()),
            pa.array([row.size for row in rows], pa.int32()),
        ]
        if width:
            columns.append(vector_array(np.concatenate([encoded.features for _, encoded in done])))
        if self.plan.logits:
            columns.append(vector_array(np.concatenate([encoded.logits for _, encoded in done])))
        return pa.table(columns, schema=schema)


def _decode(sample: Sample, size: int) -> Pixels | str:
    try:
        return eval_view(decode_image(sample.image), size)
    except BadImage as error:
        return str(error)


def _columns(pairs: list[tuple[_Row, Pixels]]) -> tuple[list[_Row], list[Pixels]]:
    return [row for row, _ in pairs], [view for _, view in pairs]


def _quarantine_table(shard: TarShard, refused: list[tuple[_Row, str]]) -> pa.Table:
    columns = [
        pa.array([row.id for row, _ in refused], pa.int64()),
        pa.array([row.key for row, _ in refused], pa.string()),
        pa.array([shard.uri] * len(refused), pa.string()),
        pa.array(["decode"] * len(refused), pa.string()),
        pa.array([reason for _, reason in refused], pa.string()),
    ]
    return pa.table(columns, schema=QUARANTINE_SCHEMA)
