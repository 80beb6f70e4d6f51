"""`cibhash encode`: encodes a dataset into a code table."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cluster.config import EncodeConfig
from jobs.runner import run_job

if TYPE_CHECKING:
    from cluster.encoding.encode import EncodeResult


def run(config: EncodeConfig) -> "EncodeResult":
    """Does the work; Ray and its kin are imported only once the command line has been understood."""
    from cluster.encoding.encode import encode

    return encode(config)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job from the command line; returns the exit code."""
    return run_job("encode", EncodeConfig, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
