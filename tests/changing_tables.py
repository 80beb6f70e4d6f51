"""A code table that changes from version to version as encoding a changing dataset again would change it."""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from cluster.code_tables import QUARANTINE_SCHEMA, code_schema, packed_array, parquet_bytes, write_listed
from cluster.code_versions import publish_codes
from cluster.manifests import CodeManifest, CodePart, QuarantineTable
from cluster.versions import read_current

BITS = 16
POOL = np.random.default_rng(5).integers(0, 256, (9, BITS // 8), dtype=np.uint8)
"""Few codes, so that most neighbors are tied."""


@dataclass(frozen=True)
class Image:
    """A row to be; a refused one takes an id but has no row."""

    key: str
    code: int
    """Of the pool."""
    labels: tuple[int, ...] = ()
    refused: bool = False


@dataclass
class ChangingTable:
    """Shards of images; ids count through them from `first_id`, so that they shift behind a change of length."""

    folder: Path
    shards: list[list[Image]] = field(default_factory=list)
    first_id: int = 0
    dataset_uri: str = "/data/one"
    encoder_digest: str = "e" * 64
    made: int = 0

    def new_images(self, count: int) -> list[Image]:
        rng = np.random.default_rng([self.first_id, self.made])
        self.made += count
        codes, keys = rng.integers(0, len(POOL), count), range(self.made - count, self.made)
        return [
            Image(f"image-{self.first_id + key}", int(code), (key % 3,)) for key, code in zip(keys, codes, strict=True)
        ]

    def publish(self) -> str:
        """Writes the parts that are not there yet, and the next version; returns the table's URI."""
        uri, parts, start = str(self.folder), [], self.first_id
        for shard in self.shards:
            parts.append(self._part(start, shard))
            start += len(shard)
        none = write_listed(uri, "quarantine/none.parquet", parquet_bytes(QUARANTINE_SCHEMA.empty_table()))
        rows = sum(part.rows for part in parts)
        manifest = CodeManifest(
            encoder_digest=self.encoder_digest,
            encoder_uri="nowhere/encoder",
            dataset_digest=hashlib.sha256(repr(self.shards).encode()).hexdigest(),
            dataset_uri=self.dataset_uri,
            bits=BITS,
            prefixes=(BITS,),
            parts=tuple(parts),
            quarantine=QuarantineTable(**none.model_dump(), rows=start - self.first_id - rows),
            rows_in=start - self.first_id,
            rows_out=rows,
            quarantined=start - self.first_id - rows,
        )
        publish_codes(uri, manifest, read_current(uri))
        return uri

    def _part(self, start: int, shard: list[Image]) -> CodePart:
        rows = [(start + place, image) for place, image in enumerate(shard) if not image.refused]
        digest = hashlib.sha256(repr(shard).encode()).hexdigest()
        columns = [
            [row_id for row_id, _ in rows],
            [image.key for _, image in rows],
            packed_array(POOL[[image.code for _, image in rows]].reshape(-1, BITS // 8)),
            [list(image.labels) for _, image in rows],
            [f"{digest[:8]}.tar"] * len(rows),
            [1024 * row_id for row_id, _ in rows],
            [100] * len(rows),
        ]
        schema = code_schema(BITS)
        table = pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
        path = f"parts/{digest[:16]}-{start}.parquet"
        return CodePart(
            **write_listed(str(self.folder), path, parquet_bytes(table)).model_dump(),
            shard=f"{digest[:8]}.tar",
            shard_sha256=digest,
            rows_in=len(shard),
            rows=len(rows),
            quarantined=len(shard) - len(rows),
            min_id=rows[0][0] if rows else 0,
            max_id=rows[-1][0] if rows else -1,
        )

    # Changes of the dataset, each over the whole table or one of its shards.

    def grow(self, rng: np.random.Generator) -> None:
        self.shards.append(self.new_images(int(rng.integers(1, 9))))

    def lengthen(self, rng: np.random.Generator) -> None:
        self.shards[self._any(rng)] += self.new_images(2)

    def remove(self, rng: np.random.Generator) -> None:
        del self.shards[self._any(rng)]

    def recode(self, rng: np.random.Generator) -> None:
        """Other pictures under the same keys."""
        shard = self._any(rng)
        self.shards[shard] = [replace(image, code=(image.code + 1) % len(POOL)) for image in self.shards[shard]]

    def replace_key(self, rng: np.random.Generator) -> None:
        """A key goes, another image takes its place; now and then with a key that another shard has too."""
        shard = self._any(rng)
        (new,) = self.new_images(1)
        if rng.integers(2):
            new = replace(new, key=self.shards[self._any(rng)][0].key)
        self.shards[shard][int(rng.integers(len(self.shards[shard])))] = new

    def relabel(self, rng: np.random.Generator) -> None:
        shard = self._any(rng)
        self.shards[shard] = [replace(image, labels=(*image.labels, 7)) for image in self.shards[shard]]

    def refuse(self, rng: np.random.Generator) -> None:
        """An image breaks: its id is left out."""
        shard = self._any(rng)
        self.shards[shard][0] = replace(self.shards[shard][0], refused=True)

    def move(self, _: np.random.Generator) -> None:
        """The dataset now lies elsewhere; every row points there."""
        self.dataset_uri += "x"

    def _any(self, rng: np.random.Generator) -> int:
        return int(rng.integers(len(self.shards)))
