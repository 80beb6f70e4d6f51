"""Protocols of the hashing literature, and numbers that others published for them, each with where it is from.

Knows nothing of what this project runs. Numbers are compared within one protocol only.
"""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from cluster.config import Section

Text = Annotated[str, Field(min_length=1)]
MapAtK = Annotated[float, Field(gt=0, lt=1)]

EVIDENCE_ABOUT = {
    "quoted": "read where somebody else quotes it, not in the source itself",
    "unverified": "from memory, to be checked before relying on it",
}
"""What the evidence levels of published numbers mean."""


class Protocol(Section):
    """Which images are queries, database and training images, and at which k mAP is taken."""

    title: Text
    k: PositiveInt
    about: Text
    """Sizes, in a sentence."""
    evidence: Literal["source", "quoted", "unverified"]
    """That the protocol is the published one: read in released code, quoted by others, or from memory."""
    splits: Annotated[tuple[Text, ...], Field(min_length=1)]
    """What `split.json` may call it."""
    sizes: dict[str, PositiveInt]
    """Images by split, of those whose number is known exactly."""
    pack: Text
    """The command that packs it, but for its output."""


class Published(Section):
    """One method's published numbers."""

    name: Text
    """By which rows refer to it."""
    method: Text
    protocols: Annotated[tuple[Text, ...], Field(min_length=1)]
    """Under which they are."""
    backbone: Text
    map: dict[int, MapAtK]
    """By code length, mAP at the protocol's k."""
    source: Text
    evidence: Literal["quoted", "unverified"]

    @property
    def origin(self) -> str:
        """Source and evidence level, as tables show them."""
        return f"{self.source} ({self.evidence})"
