"""Builds the chosen index over codes like the sample's, and holds what it takes and finds against what was predicted.

Knows nothing of other candidates. The shards are as large as planned, or as large as the codes suffice for; they are
written and loaded by the code of `cibhash index` and of the service. HTTP and hops of Serve are not measured.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from cibhash.types import Codes
from cluster.code_tables import packed_array
from cluster.index.kinds import IndexKind
from cluster.index.shard_files import write_shard_files
from cluster.index.structure_files import write_structure
from cluster.manifests import IndexShardEntry
from cluster.planning.choice import Candidate
from cluster.planning.generated_codes import GeneratedCodes
from cluster.planning.kind_model import KindModel
from cluster.planning.shard_trial import Trial, TrialShards, try_shards

_FREE_SHARE = 0.25
_BUILT_SOON: dict[IndexKind, int] = {"ivf": 2**22, "multihash": 2**22, "hnsw": 2**18}
_SORTED_SOON = 2**24
"""Codes of an index of an approximate kind, and of an exact one, that are built in about a minute."""
_GAP = 2
"""Between ids, where these are to have gaps."""


@dataclass(frozen=True)
class Compared:
    """One figure."""

    predicted: float
    measured: float
    ratio: float
    """Predicted over measured; 0 where nothing was measured."""

    @classmethod
    def of(cls, predicted: float, measured: float) -> "Compared":
        """Both, with their ratio."""
        return cls(predicted, measured, predicted / measured if measured else 0.0)


@dataclass(frozen=True)
class Verification:
    """What was built, and the figures by name."""

    items: int
    shards: int
    rows_per_shard: int
    figures: dict[str, Compared]
    """`memory_bytes` and `file_bytes` of all shards; `one_query_ms` and `block_query_ms` of one; `recall`."""


def verify(
    chosen: Candidate,
    model: KindModel,
    generated: GeneratedCodes,
    items: int,
    *,
    contiguous: bool,
    clock: Literal["cpu", "wall"],
) -> Verification:
    """Builds, measures and compares.

    Args:
        chosen: The layout.
        model: Of its kind and code length.
        generated: Codes of that length.
        items: How many of them the index is built of, at least 1.
        contiguous: Whether its ids have no gaps.
        clock: What times are of.

    Raises:
        CIBHashError: the process that holds the shards died.
    """
    shards = max(1, round(items / chosen.rows_per_shard))
    rows = max(1, min(chosen.rows_per_shard, items // shards))
    with tempfile.TemporaryDirectory(prefix="cibhash-plan-") as folder:
        codes = generated.first(shards * rows)
        entries = tuple(
            _write_shard(folder, number, codes[number * rows :][:rows], model, contiguous) for number in range(shards)
        )
        trial = try_shards(TrialShards(folder, entries, model.bits, model.spec.kind, model.k, clock))
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return Verification(shards * rows, shards, rows, _compared(model, shards, rows, trial, size, contiguous))


def default_items(items: int, model: KindModel, *, contiguous: bool) -> int:
    """All items, or as many as can be built in about a minute and a quarter of the free memory holds in one shard."""
    free, items = _FREE_SHARE * _available_bytes(), min(items, _BUILT_SOON.get(model.spec.kind, _SORTED_SOON))
    while items > 1 and model.memory(items, contiguous=contiguous).loading > free:
        items //= 2
    return items


def _write_shard(folder: str, number: int, codes: Codes, model: KindModel, contiguous: bool) -> IndexShardEntry:
    ids = np.arange(len(codes)) * (1 if contiguous else _GAP) + number * _GAP * len(codes)
    table = pa.table({"id": pa.array(ids), "code": packed_array(codes)})
    entry = write_shard_files(folder, number, table, model.bits, with_rows=False)
    return entry.model_copy(update={"structure": write_structure(folder, number, codes, model.spec)})


def _compared(
    model: KindModel, shards: int, rows: int, trial: Trial, size: int, contiguous: bool
) -> dict[str, Compared]:
    memory = shards * model.memory(rows, contiguous=contiguous).resident
    files = shards * model.file_bytes(rows, contiguous=contiguous)
    return {
        "memory_bytes": Compared.of(memory, trial.resident_bytes),
        "file_bytes": Compared.of(files, size),
        "one_query_ms": Compared.of(1e3 * model.one_query_s(rows), 1e3 * trial.one_s),
        "block_query_ms": Compared.of(1e3 * model.block_query_s(rows), 1e3 * trial.block_s),
        "recall": Compared.of(model.recall_of(rows), trial.recall),
    }


def _available_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:")))
