"""`queries.parquet`: what every query scored in every series, one row each.

Knows nothing of where the numbers come from. Equal evaluations give equal bytes.
"""

import io
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cibhash.metric_terms import QueryMetrics
from cluster.evaluation.scoring import Series

QUERIES_FILE = "queries.parquet"
SCHEMA = pa.schema(
    [
        pa.field("method", pa.string(), nullable=False),
        pa.field("bits", pa.int32(), nullable=False),
        pa.field("id", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("labels", pa.list_(pa.int32()), nullable=False),
        pa.field("relevant", pa.int64(), nullable=False),  # in the whole database
        pa.field("average_precision", pa.float64(), nullable=False),
        pa.field("average_precision_all", pa.float64(), nullable=False),
        pa.field("ndcg", pa.float64(), nullable=False),
        pa.field("precision", pa.float64(), nullable=False),
        pa.field("recall", pa.float64(), nullable=False),
        pa.field("tie_block", pa.int64(), nullable=False),
    ]
)
"""`method` as in metrics.json; the metrics are at its k, `tie_block` counts the images at the distance of rank k."""


def queries_parquet(queries: pa.Table, scored: Mapping[Series, QueryMetrics]) -> bytes:
    """The file: series by series, the queries in the order of their table (columns id, key and labels)."""
    sink = io.BytesIO()
    options = {"compression": "zstd", "use_dictionary": ["method", "bits"], "write_page_checksum": True}
    with pq.ParquetWriter(sink, SCHEMA, **options) as writer:
        for series, found in scored.items():
            columns = [
                pa.array([series.key] * len(queries)),
                pa.array(np.full(len(queries), series.bits, np.int32)),
                *(queries[name] for name in ("id", "key", "labels")),
                pa.array(found.num_relevant.astype(np.int64)),
                *(pa.array(values) for values in (found.average_precision, found.average_precision_all)),
                *(pa.array(values) for values in (found.ndcg, found.precision, found.recall)),
                pa.array(found.tie_block.astype(np.int64)),
            ]
            writer.write_table(pa.table(columns, schema=SCHEMA))
    return sink.getvalue()
