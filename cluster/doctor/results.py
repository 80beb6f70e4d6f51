"""What a check found, as `doctor.json` holds it.

Knows nothing of how it is found or shown. The same datasets and settings give the same JSON, however the work was
split.
"""

from pydantic import BaseModel, ConfigDict

from cluster.doctor.findings import SEVERITIES, Severity, Unit


class Result(BaseModel):
    """Base of the records: frozen, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class BriefOffender(Result):
    """One place where something was found."""

    dataset: str
    shard: str
    """URI; empty: the dataset as a whole."""
    name: str
    """Key, or name of the member or label; empty: the shard as a whole."""
    detail: str


class NamedOffender(BriefOffender):
    """The same with the image to show."""

    offset: int
    """Of the image inside the shard; -1: there is none to show."""
    size: int


class BriefFinding(Result):
    """One kind of finding over all datasets, as the last line of the job has it."""

    severity: Severity
    count: int
    share: float
    """Of all shards, samples, labels or datasets; members are held against samples."""
    by_dataset: dict[str, int]
    offenders: tuple[BriefOffender, ...]
    """The first ones, in the order of datasets, shards and samples."""


class Finding(BriefFinding):
    """The same with its meaning."""

    kind: str
    unit: Unit
    meaning: str
    consequence: str
    offenders: tuple[NamedOffender, ...]

    def brief(self) -> BriefFinding:
        """The finding without what can be looked up."""
        offenders = {"__all__": set(BriefOffender.model_fields)}
        fields = {name: offenders if name == "offenders" else True for name in BriefFinding.model_fields}
        return BriefFinding.model_validate(self.model_dump(include=fields))


class DatasetSummary(Result):
    """One dataset that was checked."""

    uri: str
    split: str
    shards: int
    samples: int
    """With an image, good or not."""
    refused: int
    """Images that encode would quarantine."""
    bytes: int
    unlabeled: int
    labels: dict[str, int]
    """Images per label, ascending."""
    formats: dict[str, int]
    sides: tuple[int, ...]
    """Images by shorter side: bins of `cluster.doctor.scan.SIDE_EDGES`."""


class Overlap(Result):
    """Images of one dataset that another has too, byte for byte."""

    dataset: str
    other: str
    images: int
    share: float
    """Of the dataset's images."""


class DoctorReport(Result):
    """`doctor.json`."""

    decoded: bool
    """False: headers alone were read."""
    datasets: dict[str, DatasetSummary]
    """By name."""
    class_names: dict[str, str]
    """Names of the labels, of classes.json; empty: there is none."""
    findings: dict[str, Finding]
    """By kind; errors first, then warnings, then notes."""
    overlaps: tuple[Overlap, ...]

    @property
    def samples(self) -> int:
        """Over all datasets."""
        return sum(dataset.samples for dataset in self.datasets.values())

    def found(self, severity: Severity) -> int:
        """Findings of a severity."""
        return sum(finding.count for finding in self.findings.values() if finding.severity == severity)

    @property
    def verdict(self) -> str:
        """One sentence."""
        counts = [_counted(self.found(severity), severity) for severity in SEVERITIES]
        shards = sum(dataset.shards for dataset in self.datasets.values())
        return f"{_counted(self.samples, 'image')} in {_counted(shards, 'shard')}: {', '.join(counts)}."


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
