"""The report of a check: one HTML page that needs no other file, no network and no script.

Knows nothing of how the findings came about. Every text from outside, keys and addresses included, is escaped; images
are read here, decoded and shrunk, and never put into the page as they are.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from cluster.doctor.results import DatasetSummary, DoctorReport, Finding, NamedOffender
from cluster.doctor.scan import SIDE_EDGES
from cluster.doctor.tables import percent, visible
from cluster.originals import Original
from cluster.reports.page import report_page
from cluster.reports.thumbnails import Thumbnails, read_thumbnails

MAX_PICTURES = 12
"""Offenders of a finding that are shown in the page; doctor.json has all that were named."""
MAX_BARS = 60
"""Labels that are shown; of more, the most and the least frequent ones."""


def report_html(report: DoctorReport) -> str:
    """The page; offending images are read here, and those that cannot be shown leave a gap."""
    sections = (
        _head(report),
        _findings(report),
        _overlaps(report),
        _datasets(report.datasets),
        _labels(report),
        _sides(report.datasets),
        _offenders(report.findings.values()),
    )
    title = f"{', '.join(report.datasets)} – dataset check"
    return report_page(title, sections, ("cluster.doctor", "report.css"))


def _head(report: DoctorReport) -> str:
    errors = report.found("error")
    looked = "every image was decoded" if report.decoded else "headers alone were read: images may still not decode"
    return (
        f'<p class="kicker">Dataset check</p>\n<h1>{escape(", ".join(report.datasets))}</h1>\n'
        f'<p class="lead">Tar shards as training and encoding read them; {looked}.</p>\n'
        f'<p class="verdict{" lost" if errors else ""}" role="status">{escape(report.verdict)}</p>'
    )


def _findings(report: DoctorReport) -> str:
    if not report.findings:
        return '<h2>Findings</h2>\n<p class="about">None.</p>'
    rows = []
    for one in report.findings.values():
        where = ", ".join(f"{name} {count:,}" for name, count in one.by_dataset.items())
        rows.append(
            f'<tr><td class="{one.severity}">{one.severity}</td><td class="text"><b>{escape(one.kind)}</b>'
            f"<small>{escape(one.meaning)}</small></td>"
            f'<td class="text">{escape(one.consequence)}</td><td class="text">{escape(where)}</td>'
            f"<td>{one.count:,}</td><td>{percent(one.share)}</td></tr>"
        )
    head = ("", "finding", "what happens to it", "where", "count", "share")
    return (
        '<h2>Findings</h2>\n<p class="about">Errors are what training or encoding stop at or refuse, warnings what '
        "makes results worse than they look, notes what is converted in a defined way.</p>\n"
        + _table(head, rows, text_columns=3)
    )


def _overlaps(report: DoctorReport) -> str:
    if not report.overlaps:
        return ""
    rows = [
        f'<tr><th scope="row">{escape(one.dataset)}</th><td class="text">{escape(one.other)}</td>'
        f"<td>{one.images:,}</td><td>{percent(one.share)}</td></tr>"
        for one in report.overlaps
    ]
    return (
        '<h2>Images in several datasets</h2>\n<p class="about">Equal byte for byte. Training images in the database '
        "are usual in this field; anything shared with the queries is not.</p>\n"
        + _table(("images of", "that are in", "images", "share"), rows, text_columns=1)
    )


def _datasets(datasets: Mapping[str, DatasetSummary]) -> str:
    rows = []
    for name, one in datasets.items():
        formats = ", ".join(f"{kind} {count:,}" for kind, count in one.formats.items()) or "–"
        rows.append(
            f'<tr><th scope="row">{escape(name)}<small>{escape(one.uri)}</small></th><td>{one.shards:,}</td>'
            f"<td>{one.samples:,}</td><td>{one.refused:,}</td><td>{one.bytes / 2**20:,.1f}</td>"
            f"<td>{len(one.labels):,}</td><td>{one.unlabeled:,}</td><td>{escape(formats)}</td></tr>"
        )
    head = ("dataset", "shards", "images", "refused", "MiB", "labels", "unlabeled", "formats")
    return "<h2>Datasets</h2>\n" + _table(head, rows)


def _labels(report: DoctorReport) -> str:
    parts = []
    for name, one in report.datasets.items():
        if one.labels:
            bars = [(_label(report, label), count) for label, count in _most_and_least(one.labels)]
            left = len(one.labels) - len(bars)
            more = f" ({left:,} in between are not shown)" if left else ""
            parts.append(f"<h3>{escape(name)}: {len(one.labels):,} labels{more}</h3>\n{_bars(bars)}")
    return "<h2>Images per label</h2>\n" + "\n".join(parts) if parts else ""


def _label(report: DoctorReport, label: str) -> str:
    name = report.class_names.get(label, "")
    return f"{label} {name}" if name else label


def _most_and_least(labels: Mapping[str, int]) -> list[tuple[str, int]]:
    ordered = sorted(labels.items(), key=lambda item: -item[1])
    if len(ordered) <= MAX_BARS:
        return ordered
    return [*ordered[: MAX_BARS // 2], *ordered[-MAX_BARS // 2 :]]


def _sides(datasets: Mapping[str, DatasetSummary]) -> str:
    bins = [f"below {SIDE_EDGES[0]}", *(f"{low} – {high - 1}" for low, high in itertools.pairwise(SIDE_EDGES))]
    bins.append(f"{SIDE_EDGES[-1]} and more")
    parts = []
    for name, one in datasets.items():
        used = [place for place, count in enumerate(one.sides) if count]
        if used:
            shown = range(used[0], used[-1] + 1)
            bars = _bars([(bins[place], one.sides[place]) for place in shown])
            parts.append(f"<h3>{escape(name)}</h3>\n{bars}")
    return "<h2>Shorter side in pixels</h2>\n" + "\n".join(parts) if parts else ""


def _offenders(findings: Iterable[Finding]) -> str:
    shown = [(finding, finding.offenders[:MAX_PICTURES]) for finding in findings if finding.offenders]
    if not shown:
        return ""
    pictured = [_original(one) for _, offenders in shown for one in offenders if one.offset >= 0]
    thumbnails = read_thumbnails(pictured)
    parts = []
    for finding, offenders in shown:
        items = "".join(_offender(one, thumbnails) for one in offenders)
        parts.append(
            f'<h3><span class="{finding.severity}">{escape(finding.kind)}</span> – {escape(finding.meaning)}: '
            f'{len(offenders):,} of {finding.count:,}</h3>\n<ul class="offenders">{items}</ul>'
        )
    return "<h2>First offenders</h2>\n" + "\n".join(parts)


def _offender(offender: NamedOffender, thumbnails: Thumbnails) -> str:
    picture = ""
    if offender.offset >= 0:
        source = thumbnails.pictures.get(_original(offender))
        alt = escape(visible(offender.name))
        picture = (
            f'<img class="picture" src="{source}" alt="{alt}">'
            if source is not None
            else '<span class="picture">no image</span>'
        )
    name, detail = escape(visible(offender.name)), escape(visible(offender.detail))
    return f"<li>{picture}{name}<small>{detail}</small><small>{escape(offender.shard or offender.dataset)}</small></li>"


def _original(offender: NamedOffender) -> Original:
    return Original(offender.shard, offender.offset, offender.size)


def _bars(bars: Sequence[tuple[str, int]]) -> str:
    most = max(count for _, count in bars) or 1
    rows = "".join(
        f'<span>{escape(name)}</span><i style="width:{100 * count / most:.2f}%"></i><span>{count:,}</span>'
        for name, count in bars
    )
    return f'<div class="bars">{rows}</div>'


def _table(head: Sequence[str], rows: Iterable[str], text_columns: int = 0) -> str:
    columns = "".join(
        f'<th scope="col"{" class=text" if 0 < place <= text_columns else ""}>{escape(name)}</th>'
        for place, name in enumerate(head)
    )
    return (
        f'<div class="scroll"><table class="fine"><thead><tr>{columns}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
