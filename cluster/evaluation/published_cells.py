"""Head and cells of the table of published numbers that the terminal, `metrics.md` and the report share, as text.

Knows nothing of where the numbers are from.
"""

from collections.abc import Sequence

from cluster.evaluation.results import NamedProtocol
from cluster.reproduction.published import EVIDENCE_ABOUT

_MISSING = "–"


def published_title(protocol: NamedProtocol) -> str:
    """Heading of the table."""
    return f"Published, {protocol.title}{', not comparable' if protocol.deviations else ''}"


def published_about(protocol: NamedProtocol) -> str:
    """What the table shows."""
    differs = f" NOT COMPARABLE: {'; '.join(protocol.deviations)}." if protocol.deviations else ""
    levels = dict.fromkeys(one.evidence for one in protocol.published)
    meanings = "".join(f" {level.capitalize()}: {EVIDENCE_ABOUT[level]}." for level in levels)
    return f"mAP@{protocol.k}; {protocol.about}.{meanings}{differs}"


def published_head(lengths: Sequence[int]) -> list[str]:
    """Names of the cells of `published_rows`."""
    return ["method", "backbone", *(f"{bits} bits" for bits in lengths), "from (evidence)"]


def published_rows(protocol: NamedProtocol, lengths: Sequence[int]) -> list[list[str]]:
    """The published methods that have one of the lengths, one row each."""
    rows = []
    for one in protocol.published:
        values = [f"{one.map[bits]:.3f}" if bits in one.map else _MISSING for bits in lengths]
        if any(value != _MISSING for value in values):
            rows.append([one.method, one.backbone, *values, one.origin])
    return rows
