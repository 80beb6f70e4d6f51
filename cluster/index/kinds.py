"""The kinds of an index: their names, the parameters of the approximate ones, and what these are where nobody says.

Knows nothing of codes, files and how anything is searched.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cibhash.errors import ConfigError

IndexKind = Literal["flat", "unique", "table", "ivf", "multihash", "hnsw"]
APPROXIMATE: frozenset[IndexKind] = frozenset(("ivf", "multihash", "hnsw"))
TABLE_BITS = 16
_POINTS_PER_LIST = 39
"""Codes that FAISS wants at least for each list that it trains."""


@dataclass(frozen=True)
class KindSpec:
    """What kind of index it is, with the parameters that were asked for; the others follow from a shard's size."""

    kind: IndexKind
    parameters: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_approximate(self) -> bool:
        """Whether its shards have a structure that was built and stored."""
        return self.kind in APPROXIMATE

    def check(self, uri: str, bits: int) -> None:
        """Refuses codes that the kind cannot hold.

        Raises:
            ConfigError: naming kind, bits and the codes' URI.
        """
        if self.kind == "table" and bits != TABLE_BITS:
            raise ConfigError(f"kind table needs codes of {TABLE_BITS} bits, {uri} has codes of {bits} bits")
        if self.kind == "multihash":
            chosen = self.of_shard(1, bits)
            if chosen["nhash"] * chosen["hash_bits"] > bits:
                raise ConfigError(
                    f"multihash: {chosen['nhash']} hashes of {chosen['hash_bits']} bits, "
                    f"but the codes of {uri} have {bits} bits together"
                )

    def check_device(self, uri: str, device: str) -> None:
        """Refuses a device, as torch names it, that the kind cannot be searched on; empty is the CPUs.

        Raises:
            ConfigError: naming kind and the index's URI.
        """
        if device and self.kind != "flat":
            raise ConfigError(f"use_gpu: only an index of kind flat is searched on a GPU, {uri} is of kind {self}")

    def check_kept(self, uri: str, asked: "KindSpec") -> None:
        """Refuses another kind than `flat`, which may just be the default, for an index that has this one.

        Raises:
            ConfigError: naming both.
        """
        differs = any(self.parameters.get(name) != value for name, value in asked.parameters.items())
        if differs or asked.kind not in ("flat", self.kind):
            raise ConfigError(
                f"asked for kind {asked}, but {uri} is of kind {self}, which it keeps: build another index"
            )

    def __str__(self) -> str:
        return " ".join((self.kind, *(f"{name}={value}" for name, value in self.parameters.items())))

    def of_shard(self, count: int, bits: int) -> dict[str, int]:
        """All parameters of a shard of an approximate kind.

        Args:
            count: Codes in the shard, at least 1.
            bits: Code length.
        """
        asked = self.parameters
        if self.kind == "ivf":
            nlist = min(asked.get("nlist", max(1, min(math.isqrt(count), count // _POINTS_PER_LIST))), count)
            return {"nlist": nlist, "nprobe": min(asked.get("nprobe", 32), nlist)}
        if self.kind == "multihash":
            fitting = max(1, bits // asked.get("nhash", 1))
            hash_bits = asked.get("hash_bits", min(16, fitting, max(4, count.bit_length() - 1)))
            nhash = asked.get("nhash", max(1, min(4, bits // hash_bits)))
            return {"nhash": nhash, "hash_bits": hash_bits, "nflip": min(asked.get("nflip", 2), hash_bits)}
        return {"m": asked.get("m", 16), "ef_search": asked.get("ef_search", 256)}
