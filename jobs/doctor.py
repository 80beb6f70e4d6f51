"""`cibhash doctor`: checks tar shards before GPU time is spent."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cibhash.errors import CIBHashError, DataError
from cluster.doctor_config import DoctorConfig
from jobs.runner import run_job

if TYPE_CHECKING:
    from cluster.doctor.doctor import DoctorResult


def run(config: DoctorConfig) -> "DoctorResult":
    """Does the work; Ray and its kin are imported only once the command line has been understood."""
    from cluster.doctor.doctor import doctor

    return doctor(config)


def table(result: "DoctorResult") -> str:
    """What a person sees at the end."""
    from cluster.doctor.tables import format_table

    return format_table(result)


def failing(result: "DoctorResult") -> CIBHashError | None:
    """The error that the job ends with although it did all its work."""
    return DataError(result.problem) if result.problem else None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job from the command line; returns the exit code."""
    return run_job("doctor", DoctorConfig, run, argv, table=table, failing=failing)


if __name__ == "__main__":
    raise SystemExit(main())
