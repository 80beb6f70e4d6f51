"""Code tables made in code, for tests of what reads them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cibhash.types import Codes
from cluster.code_tables import QUARANTINE_SCHEMA, code_schema, packed_array, parquet_bytes, vector_array, write_listed
from cluster.manifests import CodeManifest, CodePart, QuarantineTable, create_manifest


def make_code_table(
    folder: Path | str,
    codes: Codes,
    *,
    labels: Sequence[Sequence[int]] | None = None,
    ids: npt.NDArray[np.int64] | None = None,
    keys: Sequence[str] | None = None,
    encoder_digest: str = "e" * 64,
    encoder_uri: str = "nowhere/encoder",
    dataset_uri: str = "nowhere/dataset",
    dataset_digest: str = "d" * 64,
    shards: Sequence[str] | None = None,
    rows_per_part: int = 1000,
    prefixes: tuple[int, ...] = (),
    features: npt.NDArray[np.float32] | None = None,
    logits: npt.NDArray[np.float32] | None = None,
    quarantined: Sequence[int] = (),
    image_bytes: int = 100,
) -> str:
    """Writes a complete code table, whose last part accounts for the ids `quarantined`, and returns its URI."""
    uri, count, bits = str(folder), len(codes), codes.shape[1] * 8
    ids = np.arange(count, dtype=np.int64) if ids is None else ids
    columns = [
        pa.array(ids),
        pa.array(list(keys) if keys is not None else [f"image-{i}" for i in ids], pa.string()),
        packed_array(codes),
        pa.array([list(row) for row in labels] if labels is not None else [[]] * count, pa.list_(pa.int32())),
        pa.array(list(shards) if shards is not None else ["shard-000000.tar"] * count, pa.string()),
        pa.array(np.arange(count, dtype=np.int64) * 1024 + 512),
        pa.array(np.full(count, image_bytes, np.int32)),
    ]
    if features is not None:
        columns.append(vector_array(features))
    if logits is not None:
        columns.append(vector_array(logits))
    width = features.shape[1] if features is not None else 0
    table = pa.table(columns, schema=code_schema(bits, width, logits=logits is not None))
    parts = []
    for number, start in enumerate(range(0, count, rows_per_part)):
        rows = table.slice(start, rows_per_part)
        listed = write_listed(uri, f"parts/part-{number:06d}.parquet", parquet_bytes(rows))
        part_ids = ids[start : start + rows_per_part]
        refused = len(quarantined) if start + rows_per_part >= count else 0
        parts.append(
            CodePart(
                **listed.model_dump(),
                shard=f"shard-{number:06d}.tar",
                shard_sha256="0" * 64,
                rows_in=len(part_ids) + refused,
                rows=len(part_ids),
                quarantined=refused,
                min_id=int(part_ids.min()),
                max_id=int(part_ids.max()),
            )
        )
    reasons = [
        {"id": one, "key": f"image-{one}", "shard": parts[-1].shard, "stage": "decode", "reason": "broken"}
        for one in quarantined
    ]
    refused_rows = pa.Table.from_pylist(reasons, schema=QUARANTINE_SCHEMA)
    quarantine = write_listed(uri, "quarantine.parquet", parquet_bytes(refused_rows))
    manifest = CodeManifest(
        encoder_digest=encoder_digest,
        encoder_uri=encoder_uri,
        dataset_digest=dataset_digest,
        dataset_uri=dataset_uri,
        bits=bits,
        prefixes=prefixes or (bits,),
        features=width,
        logits=logits is not None,
        parts=tuple(parts),
        quarantine=QuarantineTable(**quarantine.model_dump(), rows=len(quarantined)),
        rows_in=count + len(quarantined),
        rows_out=count,
        quarantined=len(quarantined),
    )
    create_manifest(uri, manifest)
    return uri
