"""What became of a row: measured, missing or failed, and whether its numbers may be held against published ones.

Knows nothing of how it was run and of how it is shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.reproduction.measured import Baseline, Measurement
from cluster.reproduction.paper_table import Row
from cluster.reproduction.published import Protocol, Published


@dataclass(frozen=True)
class Outcome:
    """A row and what is known of it."""

    row: Row
    protocol: Protocol
    published: Published | None
    """What it reproduces."""
    missing: tuple[str, ...] = ()
    """Why it cannot run; empty: data and weights are at hand."""
    failures: tuple[str, ...] = ()
    """Of its runs, each with the run's label; the others' numbers stand."""
    deviations: tuple[str, ...] = ()
    """Why its numbers are no reproduction of the protocol; empty: they are."""
    split: str = ""
    runs_planned: int = 0
    runs_complete: int = 0
    measured: Mapping[int, Measurement] = field(default_factory=dict)
    """By code length."""
    baselines: tuple[Baseline, ...] = ()
    reports: tuple[str, ...] = ()
    """Where the reports of the complete runs are."""

    @property
    def status(self) -> str:
        """In a word or two: `not at hand`, `failed`, `complete` or `incomplete`."""
        if self.missing:
            return "not at hand"
        if self.failures:
            return "failed"
        return "complete" if self.runs_complete == self.runs_planned else "incomplete"

    def gain(self, bits: int) -> float | None:
        """Our mAP minus the published one, None where there is no pair that may be compared."""
        if self.published is None or self.deviations or bits not in self.measured or bits not in self.published.map:
            return None
        return self.measured[bits].value - self.published.map[bits]

    def in_band(self, bits: int) -> bool | None:
        """Whether our mAP is what is expected, None where that cannot be said."""
        if self.row.expect is None or self.deviations or bits not in self.measured:
            return None
        return self.row.expect.holds(bits, self.measured[bits].value)
