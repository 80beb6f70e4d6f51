"""The encode job: a Ray Data pipeline over tar shards, resumable, that accounts for every image.

Knows nothing of how one shard is encoded. The unit of commitment is the shard: a rerun keeps the shards whose record
and files are intact and does the rest, and `codes.json` is written last, create-only. A worker that dies is replaced
by Ray and its shard is done again.
"""

import dataclasses
import json
import logging
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from cibhash.errors import AlreadyExists, DataError, ManifestMismatch, NotFound
from cibhash.types import TarShard
from cluster import storage
from cluster.code_tables import open_codes, parquet_bytes, write_listed
from cluster.config import EncodeConfig
from cluster.datasets import open_dataset
from cluster.encoders import EncoderInfo, encoder_info
from cluster.encoding.shard_encoder import EncodingPlan, PartRecord, ShardEncoder, read_record
from cluster.failures import raise_failure
from cluster.manifests import CodeManifest, DatasetManifest, QuarantineTable, create_manifest, read_verified
from cluster.retries import add_retries
from cluster.runtime import ray_session, require_resources
from cluster.telemetry import log, progress

ALWAYS_ALLOWED = 10
"""Refused images that never fail a job, however small the dataset."""


@dataclass(frozen=True)
class EncodeResult:
    """What the encode job did."""

    codes_uri: str
    encoder_digest: str
    dataset_digest: str
    bits: int
    rows_in: int
    rows_out: int
    quarantined: int
    parts: int
    parts_reused: int


def encode(config: EncodeConfig) -> EncodeResult:
    """Encodes the dataset into a code table, continuing where an earlier run stopped.

    Raises:
        ManifestMismatch: the output holds the codes of another encoder or dataset.
        DataError: more images were refused than `max_quarantined` allows, or a shard is corrupt.
    """
    dataset, encoder = open_dataset(config.dataset), encoder_info(config.encoder)
    output = storage.absolute(config.output)
    if (complete := _complete(output, dataset, encoder, config)) is not None:
        log("encode: already complete", codes=output)
        return _result(output, complete, reused=len(complete.parts))
    plan = EncodingPlan(
        encoder_uri=storage.absolute(config.encoder),
        encoder_digest=encoder.digest,
        dataset_uri=storage.absolute(config.dataset),
        output_uri=output,
        batch_size=config.batch_size,
        features=config.features,
        logits=config.logits,
        num_threads=config.threads_per_worker,
        use_gpu=config.use_gpu,
    )
    records = {n: r for n, s in enumerate(dataset.shards) if (r := read_record(plan, n, s)) is not None}
    reused = len(records)
    todo = [(number, shard) for number, shard in enumerate(dataset.shards) if number not in records]
    if config.dry_run:
        rows = dataset.num_samples
        return EncodeResult(
            output, encoder.digest, dataset.digest, encoder.bits, rows, 0, 0, len(dataset.shards), reused
        )
    if todo:
        with ray_session(config.ray):
            require_resources(config.ray, "num_workers", config.num_workers, cpus=1.0, gpus=float(config.use_gpu))
            records.update(_encode_shards(plan, todo, config.num_workers, reused, dataset))
    manifest = _commit(plan, dataset, encoder, [records[number] for number in sorted(records)], config.max_quarantined)
    return _result(output, manifest, reused=reused)


def _complete(output: str, dataset: DatasetManifest, encoder: EncoderInfo, config: EncodeConfig) -> CodeManifest | None:
    """The code table at `output` if it is the one asked for."""
    try:
        found = open_codes(output)
    except NotFound:
        return None
    for what, old, new in (
        ("encoder", found.encoder_digest, encoder.digest),
        ("dataset", found.dataset_digest, dataset.digest),
    ):
        if old != new:
            raise ManifestMismatch(f"{output}: holds codes of {what} {old[:16]}..., asked for {new[:16]}...")
    for column in ("features", "logits"):
        if getattr(config, column) and not getattr(found, column):
            raise ManifestMismatch(f"{output}: holds codes without {column}: choose another output")
    return found


def _encode_shards(
    plan: EncodingPlan, todo: list[tuple[int, TarShard]], num_workers: int, reused: int, dataset: DatasetManifest
) -> dict[int, PartRecord]:
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # importing ray.data has just set its own level
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [{"number": number, "shard": json.dumps(dataclasses.asdict(shard))} for number, shard in todo]
    numbers = {shard.uri: number for number, shard in todo}
    pipeline = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        ShardEncoder,
        fn_constructor_args=(plan,),
        batch_size=1,
        num_cpus=1,
        num_gpus=1 if plan.use_gpu else 0,
        compute=ray.data.ActorPoolStrategy(size=min(num_workers, len(rows))),
    )
    records: dict[int, PartRecord] = {}
    refused = 0
    with progress("encode", sum(shard.count for _, shard in todo), "images") as line:
        if reused:
            log("encode: continuing", shards_done=reused, shards=len(dataset.shards))
        for row in pipeline.iter_rows():
            add_retries(json.loads(row["retries"]))
            raise_failure(row["failure"])
            record = PartRecord.model_validate_json(row["record"])
            records[numbers[record.part.shard]] = record
            refused += record.part.quarantined
            line.advance(record.part.rows_in, f"{refused} refused" if refused else None)
    return records


def _commit(
    plan: EncodingPlan,
    dataset: DatasetManifest,
    encoder: EncoderInfo,
    records: list[PartRecord],
    max_quarantined: float,
) -> CodeManifest:
    """Accounts for every image, then writes the quarantine table and the manifest."""
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
    listed = write_listed(plan.output_uri, "quarantine.parquet", parquet_bytes(table))
    manifest = CodeManifest(
        encoder_digest=plan.encoder_digest,
        encoder_uri=plan.encoder_uri,
        dataset_digest=dataset.digest,
        dataset_uri=plan.dataset_uri,
        bits=encoder.bits,
        prefixes=encoder.prefixes,
        features=records[0].features,
        logits=records[0].logits,
        parts=parts,
        quarantine=QuarantineTable(**listed.model_dump(), rows=quarantined),
        rows_in=rows_in,
        rows_out=rows_out,
        quarantined=quarantined,
    )
    try:
        create_manifest(plan.output_uri, manifest)
    except AlreadyExists:
        found = open_codes(plan.output_uri)
        if found.digest != manifest.digest:
            raise
        log("encode: another run committed the same table first", codes=plan.output_uri)
    return manifest


def _read_quarantine(output: str, record: PartRecord) -> pa.Table:
    return pq.read_table(pa.BufferReader(read_verified(output, record.quarantine)))


def _result(output: str, manifest: CodeManifest, reused: int) -> EncodeResult:
    return EncodeResult(
        codes_uri=output,
        encoder_digest=manifest.encoder_digest,
        dataset_digest=manifest.dataset_digest,
        bits=manifest.bits,
        rows_in=manifest.rows_in,
        rows_out=manifest.rows_out,
        quarantined=manifest.quarantined,
        parts=len(manifest.parts),
        parts_reused=reused,
    )
