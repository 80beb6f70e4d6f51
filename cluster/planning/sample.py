"""The sample of a corpus: codes and labels of some rows of a code table.

Knows nothing of what is made of them.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cibhash.errors import ConfigError, DataError
from cibhash.types import Codes, Labels
from cluster import storage
from cluster.code_tables import codes_of, label_arrays, label_lists, read_part
from cluster.code_versions import open_codes
from cluster.manifests import CodeManifest, CodePart

MIN_ROWS = 100
"""Fewer codes say too little of how many more are distributed."""


@dataclass(frozen=True)
class Sample:
    """Rows of a code table."""

    codes: Codes
    """Packed codes uint8 (N, B/8), all bits of the table, in the order of its parts."""
    labels: Labels | None
    """None: no row has any."""


def open_sample(uri: str, bits: tuple[int, ...]) -> tuple[str, CodeManifest]:
    """The table's absolute URI and its manifest.

    Raises:
        NotFound: it is missing or not complete.
        ConfigError: a code length was asked for that its codes do not have.
        DataError: it has too few rows.
    """
    uri = storage.absolute(uri)
    manifest = open_codes(uri)
    if max(bits, default=0) > manifest.bits:
        raise ConfigError(f"{max(bits)} bits: the codes of {uri} have {manifest.bits}")
    if manifest.rows_out < MIN_ROWS:
        raise DataError(f"{uri}: {manifest.rows_out} rows, a sample needs at least {MIN_ROWS}")
    return uri, manifest


def read_sample(uri: str, manifest: CodeManifest, max_rows: int, seed: int) -> Sample:
    """At most so many rows, drawn from parts that lie evenly over the table.

    Raises:
        ManifestMismatch: a part is not what its manifest says.
        DataError: a part cannot be read.
    """
    parts = _spread([part for part in manifest.parts if part.rows], max_rows)
    table = pa.concat_tables([read_part(uri, part, ("code", "labels")) for part in parts])
    if table.num_rows > max_rows:
        drawn = np.random.default_rng(seed).choice(table.num_rows, max_rows, replace=False)
        table = table.take(pa.array(np.sort(drawn)))
    lists = label_lists(table)
    labels = label_arrays(lists)[0] if len(lists[1]) else None
    return Sample(codes_of(table), labels)


def _spread(parts: list[CodePart], max_rows: int) -> list[CodePart]:
    """As many parts as have that many rows together, about evenly spaced."""
    for count in range(1, len(parts)):
        chosen = [parts[number * len(parts) // count] for number in range(count)]
        if sum(part.rows for part in chosen) >= max_rows:
            return chosen
    return parts
