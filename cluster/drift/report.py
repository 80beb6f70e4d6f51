"""The report of a comparison of two encoders: one HTML page that needs no other file, no network and no script.

Knows nothing of how the numbers came about. Texts from outside are escaped.
"""

from html import escape

from cluster.drift.charts import flip_bars, flipped_bars, map_bars
from cluster.drift.findings import Findings, Score, Side
from cluster.reports import html
from cluster.reports.page import report_page


def report_html(findings: Findings) -> str:
    """The page."""
    kind = "verdict" if findings.may_mix else "verdict lost"
    body = (
        '<header>\n<p class="kicker">Drift</p>\n<h1>Old encoder against new</h1>\n'
        f'<p class="lead">{findings.images:,} images with both codes, {findings.queries:,} of them as queries, '
        f"{findings.bits} bits.</p>\n</header>",
        f'<p class="{kind}">{escape(findings.verdict)}</p>',
        _notes(findings),
        "<h2>Neighbors</h2>\n"
        f'<p class="about">Of the {findings.k} nearest of a query. Small: the bootstrap 95&nbsp;% interval over '
        "queries; differences are paired.</p>",
        _numbers(findings),
        '<h2>Bits</h2>\n<p class="about">The two codes of an image differ in '
        f"{findings.mean_flipped:.2f} of {findings.bits} bits on average; {findings.unchanged:.1%} of the images keep "
        "their code.</p>",
        '<div class="charts">',
        html.figure("Flips of every bit", " Dashed: codes that know nothing of each other.", flip_bars(findings)),
        html.figure("Flips of a code", " How many bits differ.", flipped_bars(findings)),
        html.figure("mAP", " With 95 % intervals.", map_bars(findings)) if findings.map_old is not None else "",
        "</div>",
        '<h2>Provenance</h2>\n<p class="about">The sample and all numbers depend on keys and codes alone.</p>',
        html.table("fine", ("", "old", "new"), _provenance(findings)),
    )
    return report_page("Drift between two encoders", body)


def _notes(findings: Findings) -> str:
    lines = [
        f"{side.only_here:,} images of the sample are only in the {name} table and were left out."
        for name, side in (("old", findings.old), ("new", findings.new))
        if side.only_here
    ]
    if findings.old.encoder_digest == findings.new.encoder_digest:
        lines.append("Both tables are of the same encoder.")
    return f'<div class="notes"><ul>{html.items(lines)}</ul></div>' if lines else ""


def _numbers(findings: Findings) -> str:
    k = findings.k
    scores: list[tuple[str, Score | None]] = [
        ("the same neighbors, everything anew", findings.overlap),
        ("the same neighbors, only queries anew", findings.overlap_mixed),
        (f"mAP@{k}, old", findings.map_old),
        (f"mAP@{k}, new", findings.map_new),
        (f"mAP@{k}, new queries among old codes", findings.map_mixed),
        ("new minus old", findings.new_minus_old),
        ("new queries among old codes, minus old", findings.mixed_minus_old),
    ]
    rows = [html.row(name, html.value(score.mean, score.interval)) for name, score in scores if score is not None]
    rows.append(html.row("the same neighbors by chance", html.cells([f"{findings.overlap_by_chance:.4f}"])))
    return html.table("", ("", "mean"), rows)


def _provenance(findings: Findings) -> list[str]:
    sides = findings.old, findings.new

    def line(name: str, field: str) -> str:
        return html.row(name, html.cells(str(getattr(side, field)) for side in sides))

    fields = {name: name.replace("_", " ") for name in Side.model_fields if name != "only_here"}
    rows = [line(text, name) for name, text in fields.items()]
    settings = {"k": findings.k, "tolerance": findings.tolerance, "seed of the bootstrap": findings.seed}
    return rows + [html.row(name, html.cells([str(value), ""])) for name, value in settings.items()]
