"""Encodes tar shards, each into one Parquet part; the actor of the encoding pipeline.

Knows nothing of versions and of how shards are dealt. What is committed for a shard is its part, its quarantine part
and, last, a record of both. Their names carry what they are made from: running twice writes the same bytes to the same
names, and the files of a shard that changed stand beside those of what it was.
"""

import dataclasses
import functools
import hashlib
import json
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from cibhash.encoder import Encoded, HashEncoder
from cibhash.errors import CIBHashError, ManifestMismatch, NotFound
from cibhash.frozen_features import Precision
from cibhash.types import TarShard
from cluster import storage
from cluster.code_tables import QUARANTINE_SCHEMA, code_schema, packed_array, parquet_bytes, vector_array, write_listed
from cluster.encoders import open_encoder
from cluster.encoding.decoding import DecodedBatch, Row, decoded_batches, remotely_decoded
from cluster.encoding.forward import Forward
from cluster.failures import described
from cluster.manifests import CodePart, QuarantineTable
from cluster.retries import retries, retries_since

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
    """CPU threads of an actor; 0 decoders: they decode too."""
    use_gpu: bool
    decoders: int = 0
    """CPU workers per actor that decode, each a shard."""
    precision: Precision = "float32"
    compiled: bool = False


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


def part_name(plan: EncodingPlan, shard: TarShard) -> str:
    """Base name of everything written for a shard: its own, and a digest of all that decides the content."""
    settings = [plan.features, plan.logits, plan.precision, plan.compiled]
    asked = [plan.encoder_digest, *dataclasses.astuple(shard), *settings]
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

    @functools.cached_property
    def _forward(self) -> Forward:
        plan = self.plan
        return Forward(self.encoder, plan.batch_size, plan.precision, compiled=plan.compiled)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Encodes the shards in a batch of rows `shard` (JSON), side by side.

        Returns:
            Columns `record` (JSON) and `failure`, one of them empty: `error_class message` of an error of this
            project, for Ray Data would wrap a raised one and lose its class; and `retries` (JSON), what storage calls
            had to be tried again meanwhile.
        """
        shards = [TarShard(**json.loads(text)) for text in batch["shard"]]
        before = retries()
        outcomes = self.encode_shards(shards)
        tried_again = [retries_since(before), *({} for _ in shards[1:])]
        columns = {
            "record": [outcome.model_dump_json() if isinstance(outcome, PartRecord) else "" for outcome in outcomes],
            "failure": ["" if isinstance(outcome, PartRecord) else described(outcome) for outcome in outcomes],
            "retries": [json.dumps(counts) for counts in tried_again],
        }
        return {name: np.array(values, dtype=object) for name, values in columns.items()}

    def encode_shard(self, shard: TarShard) -> PartRecord:
        """Encodes one shard and commits its part, its quarantine part and their record.

        Raises:
            CIBHashError: the shard or the encoder is not what it should be.
        """
        (outcome,) = self.encode_shards([shard])
        if isinstance(outcome, CIBHashError):
            raise outcome
        return outcome

    def encode_shards(self, shards: Sequence[TarShard]) -> list[PartRecord | CIBHashError]:
        """The record of each shard, or why there is none; a batch of each in turn, so that all are decoded at once."""
        outcomes: dict[str, PartRecord | CIBHashError] = {}
        active = deque((shard, self._batches(shard), _Collected([], [], [])) for shard in shards)
        while active:
            shard, batches, collected = active.popleft()
            try:
                batch = next(batches, None)
                if batch is None:
                    outcomes[shard.uri] = self._commit(shard, collected)
                    continue
                collected.rows.extend(batch.rows)
                collected.refused.extend(batch.refused)
                if batch.rows:
                    collected.encoded.append(self._forward(batch.views))
                active.append((shard, batches, collected))
            except CIBHashError as error:
                outcomes[shard.uri] = error
        return [outcomes[shard.uri] for shard in shards]

    def _batches(self, shard: TarShard) -> Iterator[DecodedBatch]:
        """Decoded batches; what fails before the first one is raised there, too."""
        plan, size = self.plan, self.encoder.spec.image_size
        if plan.decoders:
            yield from remotely_decoded(plan.dataset_uri, shard, size, plan.batch_size)
        else:
            yield from decoded_batches(plan.dataset_uri, shard, size, plan.batch_size, plan.num_threads)

    def _commit(self, shard: TarShard, collected: "_Collected") -> PartRecord:
        """Writes part, quarantine part and, last, their record."""
        plan, rows, refused = self.plan, collected.rows, collected.refused
        name = part_name(plan, shard)
        part = write_listed(plan.output_uri, f"parts/{name}.parquet", parquet_bytes(self._table(shard, collected)))
        quarantine = write_listed(
            plan.output_uri, f"quarantine/{name}.parquet", parquet_bytes(_quarantine_table(shard, refused))
        )
        ids = [row.id for row in rows] or [shard.first_id]
        record = PartRecord(
            encoder_digest=plan.encoder_digest,
            first_id=shard.first_id,
            features=self.encoder.num_features if plan.features else 0,
            logits=plan.logits,
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
        content = record.model_dump_json(indent=1).encode()
        storage.write_bytes(storage.join(plan.output_uri, "records", f"{name}.json"), content)
        return record

    def _table(self, shard: TarShard, collected: "_Collected") -> pa.Table:
        width = self.encoder.num_features if self.plan.features else 0
        schema = code_schema(self.encoder.spec.bits, width, logits=self.plan.logits)
        rows, encoded = collected.rows, collected.encoded
        if not rows:
            return schema.empty_table()
        columns = [
            pa.array([row.id for row in rows], pa.int64()),
            pa.array([row.key for row in rows], pa.string()),
            packed_array(np.concatenate([batch.codes for batch in encoded])),
            pa.array([list(row.labels) for row in rows], pa.list_(pa.int32())),
            pa.array([shard.uri] * len(rows), pa.string()),
            pa.array([row.offset for row in rows], pa.int64()),
            pa.array([row.size for row in rows], pa.int32()),
        ]
        if width:
            columns.append(vector_array(np.concatenate([batch.features for batch in encoded])))
        if self.plan.logits:
            columns.append(vector_array(np.concatenate([batch.logits for batch in encoded])))
        return pa.table(columns, schema=schema)


class _Collected(NamedTuple):
    """What is known of a shard so far."""

    rows: list[Row]
    encoded: list[Encoded]
    """Per batch; together they are as long as `rows`."""
    refused: list[tuple[Row, str]]


def _quarantine_table(shard: TarShard, refused: list[tuple[Row, str]]) -> pa.Table:
    columns = [
        pa.array([row.id for row, _ in refused], pa.int64()),
        pa.array([row.key for row, _ in refused], pa.string()),
        pa.array([shard.uri] * len(refused), pa.string()),
        pa.array(["decode"] * len(refused), pa.string()),
        pa.array([reason for _, reason in refused], pa.string()),
    ]
    return pa.table(columns, schema=QUARANTINE_SCHEMA)
