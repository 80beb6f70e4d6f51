"""The encode job: a Ray Data pipeline over tar shards, resumable, that accounts for every image.

Knows nothing of how one shard is encoded. The unit of commitment is the shard: a rerun keeps the shards whose record
and files are intact and does the rest. A dataset that grew or changed since the current version of the table was
written gives a new version that keeps the parts of unchanged shards and leaves tombstones for the rows that are gone
(`cluster.code_versions`). A worker that dies is replaced by Ray and its shard is done again.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from cibhash.errors import DataError, ManifestMismatch
from cibhash.types import TarShard
from cluster import storage
from cluster.code_tables import TOMBSTONE_SCHEMA, parquet_bytes, write_listed
from cluster.code_versions import copy_current, open_codes, publish_codes
from cluster.config import EncodeConfig
from cluster.datasets import check_shards, open_dataset
from cluster.encoders import EncoderInfo, encoder_info
from cluster.encoding.shard_encoder import EncodingPlan, PartRecord, ShardEncoder, read_record
from cluster.encoding.tombstones import DELETED, REPLACED, read_tombstones, tombstones
from cluster.failures import raise_failure
from cluster.manifests import (
    CodeManifest,
    DatasetManifest,
    ListedFile,
    QuarantineTable,
    TombstoneTable,
    read_verified,
)
from cluster.retries import add_retries
from cluster.runtime import ray_session, require_resources
from cluster.telemetry import log, progress
from cluster.versions import name_in, read_current

ALWAYS_ALLOWED = 10
"""Refused images that never fail a job, however small the dataset."""
_READERS = 16
"""Records verified at a time."""
_BATCH_ON_CPU = 128
_LARGEST_BATCH = 1024
"""Where a GPU begins; halved until it fits into its memory."""
_DECODERS_PER_GPU = 8


@dataclass(frozen=True)
class EncodeResult:
    """What the encode job did."""

    codes_uri: str
    version: str
    encoder_digest: str
    dataset_digest: str
    bits: int
    rows_in: int
    rows_out: int
    quarantined: int
    parts: int
    parts_reused: int
    """Parts that an earlier version or an interrupted run had written."""
    deleted: int = 0
    """Rows of the version before whose keys are gone."""
    replaced: int = 0
    """Rows of the version before whose keys stand for another row now."""


def encode(config: EncodeConfig) -> EncodeResult:
    """Encodes the dataset into a code table, continuing where an earlier run or version stopped.

    Raises:
        ManifestMismatch: the output holds the codes of another encoder, or of a dataset elsewhere.
        DataError: more images were refused than `max_quarantined` allows, or a shard is corrupt.
        AlreadyExists: another run has meanwhile written another version.
    """
    dataset, encoder = open_dataset(config.dataset), encoder_info(config.encoder)
    output = storage.absolute(config.output)
    pointer = read_current(output)
    before = _version_before(output, pointer, dataset, encoder, config)
    if before is not None and _is_of(before, dataset, config):
        log("encode: already complete", codes=output, version=before.version)
        if not config.dry_run:
            copy_current(output)
        return _result(output, before, reused=len(before.parts))
    plan = _plan(config, encoder, before)
    records = _finished(plan, dataset.shards)
    reused = len(records)
    todo = [shard for shard in dataset.shards if shard.uri not in records]
    if config.dry_run:
        rows, parts = dataset.num_samples, len(dataset.shards)
        return EncodeResult(output, "", encoder.digest, dataset.digest, encoder.bits, rows, 0, 0, parts, reused)
    check_shards(config.dataset, todo)
    if todo:
        with ray_session(config.ray):
            cpus = 1.0 + plan.decoders
            require_resources(config.ray, "num_workers", config.num_workers, cpus=cpus, gpus=float(config.use_gpu))
            records.update(_encode_shards(plan, todo, config.num_workers, reused, dataset))
    ordered = [records[shard.uri] for shard in dataset.shards]
    manifest = _account(plan, dataset, encoder, ordered, config.max_quarantined)
    gone = tombstones(output, before, manifest.parts) if before else TOMBSTONE_SCHEMA.empty_table()
    everything = pa.concat_tables([read_tombstones(output, before), gone]) if before else gone
    if len(everything):
        listed = _write_table(output, "tombstones", everything)
        table = TombstoneTable(**listed.model_dump(), rows=len(everything))
        manifest = manifest.model_copy(update={"tombstones": table})
    return _result(output, publish_codes(output, manifest, pointer), reused, gone)


def _plan(config: EncodeConfig, encoder: EncoderInfo, before: CodeManifest | None) -> EncodingPlan:
    """What the actors must know; a table keeps the columns that it has."""
    return EncodingPlan(
        encoder_uri=storage.absolute(config.encoder),
        encoder_digest=encoder.digest,
        dataset_uri=storage.absolute(config.dataset),
        output_uri=storage.absolute(config.output),
        batch_size=config.batch_size or (_LARGEST_BATCH if config.use_gpu else _BATCH_ON_CPU),
        features=config.features if before is None else before.features > 0,
        logits=config.logits if before is None else before.logits,
        num_threads=config.threads_per_worker,
        use_gpu=config.use_gpu,
        decoders=config.decoders if config.decoders is not None else _DECODERS_PER_GPU * config.use_gpu,
        precision=config.precision,
        compiled=config.compiled,
    )


def _is_of(table: CodeManifest, dataset: DatasetManifest, config: EncodeConfig) -> bool:
    """Whether the table holds the codes asked for: equal data elsewhere will do, unless the table is to point there."""
    elsewhere = table.dataset_uri != storage.absolute(config.dataset)
    return table.dataset_digest == dataset.digest and not (config.moved and elsewhere)


def _version_before(
    output: str, pointer: bytes | None, dataset: DatasetManifest, encoder: EncoderInfo, config: EncodeConfig
) -> CodeManifest | None:
    """The version of the table at `output` that the new one follows."""
    if pointer is None:
        return None
    found = open_codes(output, name_in(output, pointer))
    if found.encoder_digest != encoder.digest:
        raise ManifestMismatch(
            f"{output}: holds codes of encoder {found.encoder_digest[:16]}..., asked for {encoder.digest[:16]}..."
        )
    moved = found.dataset_uri != storage.absolute(config.dataset) and found.dataset_digest != dataset.digest
    if moved and not config.moved:
        raise ManifestMismatch(
            f"{output}: holds codes of the dataset at {found.dataset_uri}, asked for {config.dataset}: choose another "
            "output, or say --moved if it is the same dataset"
        )
    for column in ("features", "logits"):
        if getattr(config, column) and not getattr(found, column):
            raise ManifestMismatch(f"{output}: holds codes without {column}: choose another output")
    for setting in ("precision", "compiled"):
        if getattr(config, setting) != getattr(found, setting):
            raise ManifestMismatch(
                f"{output}: holds codes made with {setting} {getattr(found, setting)}, asked for "
                f"{getattr(config, setting)}: bits near the threshold would differ"
            )
    return found


def _finished(plan: EncodingPlan, shards: Sequence[TarShard]) -> dict[str, PartRecord]:
    """Records of the shards that are done, by the shard's URI; their files are read and compared."""
    with ThreadPoolExecutor(_READERS) as readers:
        found = readers.map(lambda shard: read_record(plan, shard), shards)
        return {shard.uri: record for shard, record in zip(shards, found, strict=True) if record is not None}


def _encode_shards(
    plan: EncodingPlan, todo: list[TarShard], num_workers: int, reused: int, dataset: DatasetManifest
) -> dict[str, PartRecord]:
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # importing ray.data has just set its own level
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [{"shard": json.dumps(dataclasses.asdict(shard))} for shard in todo]
    together = max(1, plan.decoders)
    num_blocks = -(-len(rows) // together)
    pipeline = ray.data.from_items(rows, override_num_blocks=num_blocks).map_batches(
        ShardEncoder,
        fn_constructor_args=(plan,),
        batch_size=together,
        num_cpus=1,
        num_gpus=1 if plan.use_gpu else 0,
        compute=ray.data.ActorPoolStrategy(size=min(num_workers, num_blocks)),
    )
    records: dict[str, PartRecord] = {}
    refused = 0
    with progress("encode", sum(shard.count for shard in todo), "images") as line:
        if reused:
            log("encode: continuing", shards_done=reused, shards=len(dataset.shards))
        for row in pipeline.iter_rows():
            add_retries(json.loads(row["retries"]))
            raise_failure(row["failure"])
            record = PartRecord.model_validate_json(row["record"])
            records[record.part.shard] = record
            refused += record.part.quarantined
            line.advance(record.part.rows_in, f"{refused} refused" if refused else None)
    return records


def _account(
    plan: EncodingPlan,
    dataset: DatasetManifest,
    encoder: EncoderInfo,
    records: list[PartRecord],
    max_quarantined: float,
) -> CodeManifest:
    """The manifest of a version that holds or quarantines every image, with its quarantine table written."""
    parts = tuple(record.part for record in records)
    rows_in, rows_out = sum(part.rows_in for part in parts), sum(part.rows for part in parts)
    quarantined = sum(part.quarantined for part in parts)
    if len(parts) != len(dataset.shards) or rows_in != dataset.num_samples or rows_in != rows_out + quarantined:
        raise DataError(
            f"{plan.output_uri}: {rows_in} rows of {len(parts)} shards = {rows_out} codes + {quarantined} quarantined, "
            f"but the dataset has {dataset.num_samples} images in {len(dataset.shards)} shards"
        )
    tables = [_read_quarantine(plan.output_uri, record) for record in records if record.quarantine.rows]
    if quarantined > max(ALWAYS_ALLOWED, max_quarantined * rows_in):
        first = tables[0].slice(0, 1).to_pylist()[0]
        raise DataError(
            f"{plan.dataset_uri}: {quarantined} of {rows_in} images refused, the limit is {max_quarantined:.2%} "
            f"(--max-quarantined); first: {first['shard']} key {first['key']!r}: {first['reason']}"
        )
    table = pa.concat_tables(tables) if tables else _read_quarantine(plan.output_uri, records[0])
    listed = _write_table(plan.output_uri, "quarantine", table)
    return CodeManifest(
        encoder_digest=plan.encoder_digest,
        encoder_uri=plan.encoder_uri,
        dataset_digest=dataset.digest,
        dataset_uri=plan.dataset_uri,
        bits=encoder.bits,
        prefixes=encoder.prefixes,
        features=records[0].features,
        logits=records[0].logits,
        precision=plan.precision,
        compiled=plan.compiled,
        parts=parts,
        quarantine=QuarantineTable(**listed.model_dump(), rows=quarantined),
        rows_in=rows_in,
        rows_out=rows_out,
        quarantined=quarantined,
    )


def _write_table(output: str, name: str, table: pa.Table) -> ListedFile:
    """Writes a table of one version under a name that tells it from those of other versions."""
    content = parquet_bytes(table)
    return write_listed(output, f"{name}/{name}-{hashlib.sha256(content).hexdigest()[:16]}.parquet", content)


def _read_quarantine(output: str, record: PartRecord) -> pa.Table:
    return pq.read_table(pa.BufferReader(read_verified(output, record.quarantine)))


def _result(output: str, manifest: CodeManifest, reused: int, gone: pa.Table | None = None) -> EncodeResult:
    reasons = [] if gone is None else gone["reason"].to_pylist()
    return EncodeResult(
        codes_uri=output,
        version=manifest.version,
        encoder_digest=manifest.encoder_digest,
        dataset_digest=manifest.dataset_digest,
        bits=manifest.bits,
        rows_in=manifest.rows_in,
        rows_out=manifest.rows_out,
        quarantined=manifest.quarantined,
        parts=len(manifest.parts),
        parts_reused=reused,
        deleted=reasons.count(DELETED),
        replaced=reasons.count(REPLACED),
    )
