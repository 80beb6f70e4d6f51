"""What a person writes to check datasets.

Knows nothing of the command line and of what is looked for.
"""

from pydantic import NonNegativeInt, model_validator

from cluster.config import JobConfig


class DoctorConfig(JobConfig):
    """Check tar shards before GPU time is spent, and write a cleaned copy where asked to.

    A DATASET is a folder with dataset.json, a folder that holds several of them (its splits), a folder of tar shards
    without a manifest, or one tar. Name all splits together: images that two of them share are found only then.

      cibhash doctor data
      cibhash doctor data/query data/database --output report --fix cleaned

    Errors are what training or encoding would stop at or refuse: exit code 3. Warnings are what makes results worse
    than they look: exit code 0, or 3 with --strict. Notes tell what is converted. With --fix the exit code speaks of
    the copy, which has no error.
    """

    datasets: tuple[str, ...] = ()
    """Datasets to check: folders with dataset.json, the folder above several, folders of tar shards, or tars."""
    output: str = ""
    """Where doctor.json and doctor.html go; empty: the result is only shown."""
    fix: str = ""
    """Where a cleaned copy goes: FIX itself for one dataset, FIX/<split> for several. Good samples with unchanged
    image bytes; what is left out stands in left_out.jsonl with its reason."""
    decode: bool = True
    """Decode every image as training and encoding do; without it only headers are read."""
    offenders: NonNegativeInt = 5
    """Images or shards named per finding, the first ones."""
    strict: bool = False
    """Warnings fail too."""

    @model_validator(mode="after")
    def _check(self) -> "DoctorConfig":
        if not self.datasets:
            raise ValueError("datasets: at least one folder of tar shards is needed")
        if self.fix and not self.decode:
            raise ValueError("fix needs to decode every image: leave out --no-decode")
        return self
