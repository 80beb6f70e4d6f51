"""What a split is called and which images it holds: `split.json`, by which results are compared or not.

Knows nothing of pixels and shards: a split is its images' keys and labels. Two packs with the same checksum hold the
same images in the same roles, whatever files they were read from and however they were cut.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from cluster.manifests import Manifest
from cluster.packing.source_items import SourceItem


class SplitPart(BaseModel):
    """One of the sets of a split, such as the queries."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    count: int
    sha256: str
    """Of the lines `key TAB labels LF`, labels separated by commas, sorted."""


class SplitManifest(Manifest):
    """`split.json`: beside the datasets of a split."""

    file_name: ClassVar[str] = "split.json"
    noun: ClassVar[str] = "split"
    format: Literal["cibhash-split-1"] = "cibhash-split-1"
    name: str
    """`cifar10/cibhash`, or what splits the person asked for."""
    seed: int | None
    """None: the split does not depend on a seed."""
    parts: dict[str, SplitPart]
    """By name."""

    @property
    def sha256(self) -> str:
        """SHA-256 over names and checksums of the parts."""
        content = [[name, part.count, part.sha256] for name, part in sorted(self.parts.items())]
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def identify(name: str, seed: int | None, items: Iterable[SourceItem]) -> SplitManifest:
    """The identity of the split that these items make."""
    lines: dict[str, list[bytes]] = {}
    for item in items:
        lines.setdefault(item.split, []).append(f"{item.key}\t{','.join(map(str, item.labels))}\n".encode())
    return SplitManifest(name=name, seed=seed, parts={split: _part(of) for split, of in sorted(lines.items())})


def differing(split: SplitManifest, published: Mapping[str, str]) -> list[str]:
    """Names of the parts whose checksum is not the published one; parts of unknown checksum are not among them."""
    found = {name: part.sha256 for name, part in split.parts.items()}
    return sorted(name for name, sha256 in published.items() if found.get(name) != sha256)


def _part(lines: list[bytes]) -> SplitPart:
    digest = hashlib.sha256()
    for line in sorted(lines):
        digest.update(line)
    return SplitPart(count=len(lines), sha256=digest.hexdigest())
