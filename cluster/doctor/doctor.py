"""Checks datasets: scans all shards by parallel Ray tasks, compares all images, reports, and writes cleaned copies.

Knows nothing of what is looked for in a shard (`cluster.doctor.scan`). Only reads what it checks. A broken shard is a
finding; storage that fails ends the job. Tasks may run twice, and the result does not depend on how shards are cut.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster import storage
from cluster.doctor.assembly import assemble
from cluster.doctor.fix import FixedDataset, copy_folders, write_cleaned
from cluster.doctor.report import report_html
from cluster.doctor.results import BriefFinding, DoctorReport
from cluster.doctor.scan import ScanTask, ShardScan, scan_shard
from cluster.doctor.tables import place
from cluster.doctor.targets import Target, open_targets
from cluster.doctor_config import DoctorConfig
from cluster.in_flight import completed, default_limit, named_call
from cluster.runtime import ray_session
from cluster.telemetry import log, progress

REPORT_JSON, REPORT_PAGE = "doctor.json", "doctor.html"


@dataclass(frozen=True)
class CheckedDataset:
    """One dataset of the check."""

    uri: str
    shards: int
    samples: int
    """With an image; of a dry run: what the manifest says, -1 without one."""


@dataclass(frozen=True)
class DoctorResult:
    """What the doctor job found."""

    datasets: dict[str, CheckedDataset]
    """By name: the split, where that is unique."""
    errors: int
    warnings: int
    notes: int
    findings: dict[str, BriefFinding]
    """By kind; errors first, then warnings, then notes."""
    report_uri: str
    """Empty: no report was asked for."""
    fixed: dict[str, FixedDataset]
    """The cleaned copies by name; empty: none were asked for."""
    verdict: str
    problem: str
    """Why the job fails; empty: it does not."""


def doctor(config: DoctorConfig) -> DoctorResult:
    """Checks the datasets; with `dry_run` only says which they are.

    Raises:
        NotFound: nothing there that could be checked.
        ConfigError: a cleaned copy would go where the originals lie.
        DataError: a broken manifest, or a dataset of which nothing can be kept.
        AlreadyExists: another dataset where a cleaned copy should go.
        StorageError: a shard that is there cannot be read.
    """
    targets = open_targets(config.datasets)
    if config.fix:
        copy_folders(config.fix, targets)
    if config.dry_run:
        datasets = {
            target.name: CheckedDataset(target.uri, len(target.shards), _listed_samples(target)) for target in targets
        }
        return DoctorResult(datasets, 0, 0, 0, {}, "", {}, "", "")
    with ray_session(config.ray):
        scans = _scan_all(config, targets)
        report = assemble(config, targets, scans)
        log(f"doctor: {report.verdict}")
        report_uri = _write_report(config, report) if config.output else ""
        fixed = write_cleaned(config.fix, targets, scans) if config.fix else {}
    return DoctorResult(
        datasets={name: CheckedDataset(one.uri, one.shards, one.samples) for name, one in report.datasets.items()},
        errors=report.found("error"),
        warnings=report.found("warning"),
        notes=report.found("note"),
        findings={kind: finding.brief() for kind, finding in report.findings.items()},
        report_uri=report_uri,
        fixed=fixed,
        verdict=report.verdict,
        problem=_problem(config, report),
    )


def _scan_all(config: DoctorConfig, targets: Sequence[Target]) -> Mapping[str, list[ShardScan]]:
    """The scans of all shards, by dataset, in shard order."""
    import ray

    remote = ray.remote(num_cpus=1)(scan_shard)

    def calls() -> Iterator[tuple[tuple[str, int], Callable[[], Any]]]:
        for target in targets:
            for number, shard in enumerate(target.shards):
                task = ScanTask(target.name, shard.uri, shard.listed, config.decode, config.offenders)
                yield (target.name, number), named_call(remote, f"doctor {shard.uri}", task)

    found: dict[tuple[str, int], ShardScan] = {}
    with progress("doctor", sum(len(target.shards) for target in targets), "shards") as line:
        errors = 0
        for place, scan in completed(calls(), default_limit()):
            found[place] = scan
            errors += scan.num_errors
            line.advance(1, f"{errors} errors" if errors else None)
    return {target.name: [found[target.name, number] for number in range(len(target.shards))] for target in targets}


def _write_report(config: DoctorConfig, report: DoctorReport) -> str:
    output = storage.absolute(config.output)
    storage.write_bytes(storage.join(output, REPORT_JSON), f"{report.model_dump_json(indent=1)}\n".encode())
    page = storage.join(output, REPORT_PAGE)
    storage.write_bytes(page, report_html(report).encode())
    return page


def _problem(config: DoctorConfig, report: DoctorReport) -> str:
    """Why the job fails: errors that no cleaned copy is without, or with `strict` any warning."""
    failed_by = {"error": not config.fix, "warning": config.strict, "note": False}
    failing = [finding for finding in report.findings.values() if failed_by[finding.severity]]
    if not failing:
        return ""
    first = next(iter(failing[0].offenders), None)
    where = "" if first is None else f"; first: {place(first)}"
    kinds = ", ".join(f"{finding.kind} {finding.count:,}" for finding in failing)
    return f"{kinds}{where}"


def _listed_samples(target: Target) -> int:
    listed = [shard.listed for shard in target.shards]
    return sum(shard.count for shard in listed if shard is not None) if target.has_manifest else -1
