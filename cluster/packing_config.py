"""What a person writes to bring images in: packed into tar shards, or in shards that are there already.

Knows nothing of the command line and of how either is done.
"""

from typing import Annotated, Any

from pydantic import Field, PositiveInt, model_validator

from cluster.config import JobConfig, Seed
from cluster.sizes import parse_size

DEFAULT_SAMPLES_PER_SHARD = 5000


class PackConfig(JobConfig):
    """Pack images into tar shards with a manifest, one dataset per split at OUTPUT/<split>.

    Equal sources and settings give equal bytes. OUTPUT/split.json names the split and its checksum.
    """

    source: str
    """A folder of images or of class folders, a CSV, Parquet or JSONL list (path, optional key, labels, split), or a
    benchmark: `digits`, or with --data `cifar10`, `nuswide`, `mscoco`."""
    output: str
    """Where the datasets go: OUTPUT/<split>/dataset.json and its shards."""
    data: str = ""
    """Folder of a benchmark's own files. cifar10: cifar-10-batches-py, cifar-10-batches-bin, one of their archives, or
    tar shards, whichever is there. nuswide, mscoco: the image folder, with the lists database.txt, test.txt and
    train.txt, or else the official labels (Groundtruth and ImageList; annotations/instances_*.json)."""
    lists: str = ""
    """Folder of database.txt, test.txt and train.txt of nuswide or mscoco, if not --data."""
    download: bool = False
    """Fetch CIFAR-10's archive into --data by torchvision where nothing is there (162 MB from cs.toronto.edu)."""
    protocol: str = ""
    """Which split of a benchmark. cifar10: `cibhash` (default: 10,000 queries, 50,000 database, 5,000 train),
    `official_seed0` (the released code's), `mecoq_i` (trained on the whole database), `deephash` (100 queries per
    class, 59,000 database). nuswide, mscoco: `lists` or `seeded`; default: lists where they are there."""
    max_missing: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of the images of nuswide or mscoco that may be missing, empty or no image at all: they are left out,
    counted and listed in missing.txt. Any other source must be complete."""
    name: str = ""
    """Name of the dataset; default: the source's."""
    splits: str = ""
    """Seeded split of a source that has none, as shares: `query=0.1,database=0.9`. Empty: one split, `all`."""
    samples_per_shard: PositiveInt | None = None
    """Images per tar shard; default 5000, unless bytes_per_shard is given."""
    bytes_per_shard: str = ""
    """Instead: the largest size of a tar shard, as in 256MB or 1GiB. An image that is larger has a shard to itself."""
    seed: Seed = 0
    """Seed of the split and of the order within the shards."""

    @property
    def shard_samples(self) -> int:
        """Images per tar shard, at most; 0 where bytes limit it."""
        return 0 if self.bytes_per_shard else self.samples_per_shard or DEFAULT_SAMPLES_PER_SHARD

    @property
    def shard_bytes(self) -> int:
        """Bytes of a tar shard, at most; 0 where images limit it."""
        return parse_size(self.bytes_per_shard) if self.bytes_per_shard else 0

    @model_validator(mode="after")
    def _check(self) -> "PackConfig":
        if self.bytes_per_shard:
            if self.samples_per_shard is not None:
                raise ValueError("samples_per_shard and bytes_per_shard exclude each other")
            try:
                parse_size(self.bytes_per_shard)
            except ValueError as error:
                raise ValueError(f"bytes_per_shard {error}") from None
        return self


class AdoptConfig(JobConfig):
    """Make a dataset of tar shards that are there already, img2dataset's for instance, without copying them.

    One scan in parallel reads every shard as training will, and writes dataset.json. A rerun after an interruption
    scans only what is left.
    """

    tar_shards: str
    """A folder or s3:// prefix of tar files, a pattern as in s3://bucket/laion/{00000..00099}.tar, or a list (*.txt)
    with one shard per line."""
    output: str = ""
    """Where dataset.json goes; default: beside the shards, in the folder or that of the pattern or list."""
    name: str = ""
    """Name of the dataset; default: that of the folder."""
    split: str = "all"
    """Split of the dataset."""
    allow_duplicate_keys: bool = False
    """Accept keys that come in more than one shard; looking one up then finds any of its images."""

    @model_validator(mode="before")
    @classmethod
    def _output_beside(cls, values: Any) -> Any:
        """Fills in the output, so that whatever reads the config, the run report's writer too, knows it."""
        if not isinstance(values, dict) or values.get("output") or not isinstance(values.get("tar_shards"), str):
            return values
        return {**values, "output": folder_of(values["tar_shards"])}

    @model_validator(mode="after")
    def _check(self) -> "AdoptConfig":
        if not self.output or "{" in self.output:
            raise ValueError(f"output is needed: {self.tar_shards!r} names no one folder")
        return self


def folder_of(tar_shards: str) -> str:
    """The folder that the shards lie in: a pattern or a list names it before its last slash."""
    if "{" in tar_shards or tar_shards.endswith((".txt", ".tar")):
        return tar_shards.rpartition("/")[0] or "."
    return tar_shards
