"""What a person writes to compare an old encoder with a new one.

Knows nothing of the command line and of how the codes are compared.
"""

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from cluster.config import JobConfig, Seed


class DriftConfig(JobConfig):
    """Compare the codes that an old and a new encoder make of the same images, and say whether to switch.

    Encode the same dataset, or a part of it, by both encoders; images are matched by key. Asked are three things: which
    bits flip; of which neighbors an answer would lose sight; and, where the images have labels, what happens to mAP if
    everything is encoded anew, and if only queries are, so that new codes search among old ones.

      cibhash drift --old codes-old --new codes-new --output drift --index index

    With --index the findings lie beside the index too: `index --switch` and the service, its page included, show them
    when they go from a version of the old encoder to one of the new.
    """

    old: str
    """Code table by the encoder that is in use."""
    new: str
    """Code table by the encoder that may replace it."""
    output: str
    """Where drift.json and report.html go."""
    index: str = ""
    """An index directory, to leave the findings there for whoever switches its versions."""
    sample: PositiveInt = 50_000
    """Images that are compared, chosen by their keys alone."""
    queries: PositiveInt = 1_000
    """How many of them are searched for among the others."""
    k: PositiveInt = 100
    """Neighbors of a query; depth of mAP."""
    tolerance: Annotated[NonNegativeFloat, Field(le=1)] = 0.01
    """Loss of mAP, or without labels of common neighbors, up to which new codes may stand among old ones."""
    seed: Seed = 0
    """Of the bootstrap."""

    @model_validator(mode="after")
    def _check(self) -> "DriftConfig":
        if self.sample < 2:
            raise ValueError("sample: at least two images, a query and a neighbor")
        return self
