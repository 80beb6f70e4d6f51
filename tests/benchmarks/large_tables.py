"""Code tables of any size for benchmarks, written by several processes.

Knows nothing of what reads them.
"""

import functools
import os
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pyarrow as pa

from cluster.code_tables import QUARANTINE_SCHEMA, code_schema, packed_array, parquet_bytes, write_listed
from cluster.code_versions import publish_codes
from cluster.encoders import encoder_info
from cluster.manifests import CodeManifest, CodePart, QuarantineTable
from tests.benchmarks.clustered_codes import large_part

_PART = 2**22


def write_large_table(uri: str, count: int, bits: int, encoder_uri: str, *, classes: int = 0, first: int = 0) -> str:
    """A code table of generated codes, ids counting up from 0; returns its URI.

    Args:
        uri: Where.
        count: Rows.
        bits: Code length.
        encoder_uri: Whose digest it carries.
        classes: Labels are drawn from so many, one each; 0: no labels.
        first: Of the parts' seeds, so that two tables differ.
    """
    write = functools.partial(_write_part, uri, count, bits, classes, first)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        parts = list(pool.map(write, range(-(-count // _PART))))
    none = write_listed(uri, "quarantine/none.parquet", parquet_bytes(QUARANTINE_SCHEMA.empty_table()))
    manifest = CodeManifest(
        encoder_digest=encoder_info(encoder_uri).digest,
        encoder_uri=encoder_uri,
        dataset_digest=f"{first:064x}",
        dataset_uri="nowhere/dataset",
        bits=bits,
        prefixes=(bits,),
        parts=tuple(parts),
        quarantine=QuarantineTable(**none.model_dump(), rows=0),
        rows_in=count,
        rows_out=count,
        quarantined=0,
    )
    publish_codes(uri, manifest, None)
    return uri


def _write_part(uri: str, count: int, bits: int, classes: int, first_seed: int, number: int) -> CodePart:
    first = number * _PART
    rows = min(_PART, count - first)
    ids = np.arange(first, first + rows)
    labels = np.random.default_rng([classes, first_seed, number]).integers(0, classes, rows) if classes else []
    limits = np.arange(rows + 1) if classes else np.zeros(rows + 1)
    columns = [
        pa.array(ids),
        pa.array(ids).cast(pa.string()),
        packed_array(large_part(first_seed + number, rows, bits)),
        pa.ListArray.from_arrays(pa.array(limits.astype(np.int32)), pa.array(labels, pa.int32())),
        pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), ["a.tar"]).cast(pa.string()),
        pa.array(ids * 1024),
        pa.array(np.full(rows, 900, np.int32)),
    ]
    table = pa.table(columns, schema=code_schema(bits))
    return CodePart(
        **write_listed(uri, f"parts/part-{number:06d}.parquet", parquet_bytes(table)).model_dump(),
        shard=f"shard-{number:06d}.tar",
        shard_sha256=f"{number:064x}",
        rows_in=rows,
        rows=rows,
        quarantined=0,
        min_id=first,
        max_id=first + rows - 1,
    )
