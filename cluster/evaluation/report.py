"""The report of an evaluation: one HTML page that needs no other file, no network and no script.

Knows nothing of how the numbers came about. Every text from outside, keys and addresses included, is escaped.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources

from cluster.evaluation import plots
from cluster.evaluation.examples import Example, ExampleNeighbor
from cluster.evaluation.methods import FLOAT_NAME, OURS, method_name
from cluster.evaluation.result_tables import ASYMMETRIC_ABOUT, difference_about, empty_balls
from cluster.evaluation.results import EMPTY_BALL_RADIUS, Evaluation, Interval, Margin, TableRecord
from cluster.evaluation.thumbnails import Thumbnails, read_thumbnails
from cluster.index.shard_index import Row
from cluster.originals import Original

_MAX_REASONS = 3


@dataclass(frozen=True)
class Locations:
    """Where the tables, by role, and the encoder (`encoder`) lie."""

    main: Mapping[str, str]
    compared: Mapping[str, Mapping[str, str]]
    """By name of the compared encoder."""


def report_html(evaluation: Evaluation, examples: Sequence[Example], uris: Locations) -> str:
    """The page.

    Args:
        evaluation: The numbers.
        examples: Query images with neighbors; their originals are read here, and those that cannot be are named.
        uris: Of the evaluation's tables and encoders.
    """
    title = escape(evaluation.title)
    style = resources.files("cluster.evaluation").joinpath("report.css").read_text()
    sections = (
        _head(evaluation),
        _headline(evaluation),
        _differences(evaluation),
        _curves(evaluation),
        _details(evaluation),
        _examples(evaluation.name, examples),
        _provenance(evaluation, uris),
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title} – retrieval evaluation</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )


def _head(evaluation: Evaluation) -> str:
    html = [
        '<p class="kicker">Retrieval evaluation</p>',
        f"<h1>{escape(evaluation.title)}</h1>",
        f'<p class="lead">{evaluation.queries:,} queries against {evaluation.database:,} images, ranked by Hamming '
        f"distance. Two images are relevant to each other when they share a label.</p>",
    ]
    for beats_itq, sentence in evaluation.verdicts:
        lost = "" if beats_itq else " lost"
        html.append(f'<p class="verdict{lost}" role="status">{escape(sentence)}</p>')
    if evaluation.notes:
        html.append(f'<ul class="notes">{_items(evaluation.notes)}</ul>')
    return "\n".join(html)


def _headline(evaluation: Evaluation) -> str:
    rows = []
    for method in evaluation.methods:
        found = [evaluation.find(method, bits) for bits in evaluation.lengths]
        cells = [_value(one.map_at_k, one.interval) if one is not None else "<td>–</td>" for one in found]
        kind = ' class="ours"' if method == OURS else ""
        rows.append(f'<tr{kind}><th scope="row">{_name(evaluation, method)}</th>{"".join(cells)}</tr>')
    if (upper := evaluation.float_cosine) is not None:
        cell = _value(upper.map_at_k, upper.interval, columns=len(evaluation.lengths))
        rows.append(f'<tr class="upper"><th scope="row">{FLOAT_NAME}</th>{cell}</tr>')
    asymmetric = f" {escape(ASYMMETRIC_ABOUT)}" if evaluation.is_asymmetric else ""
    table = _table("headline", ["method", *(f"{bits} bits" for bits in evaluation.lengths)], rows)
    return (
        f"<h2>mAP@{evaluation.k}</h2>\n"
        '<p class="about">Expectation over all orders of equal distances; the denominator is the relevant images in '
        f"the top {evaluation.k:,}. Small: the bootstrap 95&nbsp;% interval over queries.{asymmetric}</p>\n"
        f'<div class="charts beside">{table}<figure>{plots.map_bars(evaluation)}</figure></div>'
    )


def _differences(evaluation: Evaluation) -> str:
    if not evaluation.compared:
        return ""
    rows = []
    for one in evaluation.compared:
        cells = (_difference(one.margin(bits)) for bits in evaluation.lengths)
        rows.append(f'<tr><th scope="row">{escape(one.name)}</th>{"".join(cells)}</tr>')
    return (
        f'<h2>Differences</h2>\n<p class="about">{escape(difference_about(evaluation))} Small: the paired bootstrap '
        "95&nbsp;% interval; where it holds 0, the difference is within the noise of the queries.</p>\n"
        + _table("fine", ["difference to", *(f"{bits} bits" for bits in evaluation.lengths)], rows)
    )


def _curves(evaluation: Evaluation) -> str:
    charts = (
        ("by rank", "Top 1 to the whole database, ties averaged.", plots.curves_by_rank(evaluation)),
        (
            "by radius",
            "Radius 0 to the code length; a query without an image within the radius counts as 0.",
            plots.curves_by_radius(evaluation),
        ),
    )
    figures = (
        f"<figure><figcaption><b>Precision and recall {name}</b>{about}</figcaption>{svg}</figure>"
        for name, about, svg in charts
    )
    return f'<h2>Curves</h2>\n<div class="charts">{"".join(figures)}</div>'


def _details(evaluation: Evaluation) -> str:
    k = evaluation.k
    rows = []
    for one in evaluation.series:
        values = (one.map_worst, one.map_best, one.precision_at_k, one.recall_at_k)
        cells = [f"{value:.4f}" for value in values] + [empty_balls(one), f"{one.median_tie_block:,.0f}"]
        rows.append(f'<tr><th scope="row">{_name(evaluation, one.method)} {one.bits}</th>{_cells(cells)}</tr>')
    health = [
        f'<tr><th scope="row">{one.bits} bits</th>'
        + _cells(
            (
                f"{one.distinct_share:.2%}",
                f"{one.mean_imbalance:.3f}",
                f"{one.least_balanced:.3f}",
                str(one.constant_bits),
            )
        )
        + "</tr>"
        for one in evaluation.health
    ]
    empty = f"empty balls, radius {EMPTY_BALL_RADIUS}"
    return (
        "<h2>In detail</h2>\n"
        '<p class="about">Ties worst and best: mAP if relevant images came last or first within every distance. '
        "Tie block: images that share the distance of rank k.</p>\n"
        + _table("fine", ["codes", "ties worst", "ties best", f"P@{k}", f"R@{k}", empty, "median tie block"], rows)
        + f'\n<p class="about">The database’s codes by {escape(evaluation.name)}: how many are distinct, and how far '
        "the share of ones of each bit is from one half.</p>\n"
        + _table("fine", ["codes", "distinct", "mean imbalance", "ones, worst bit", "constant bits"], health)
    )


def _examples(encoder: str, examples: Sequence[Example]) -> str:
    if not examples:
        return ""
    rows = [row for one in examples for row in (one.query, *(neighbor.row for neighbor in one.neighbors))]
    thumbnails = read_thumbnails(_original(row) for row in rows)
    missing = ""
    if thumbnails.reasons:
        wanted = len(thumbnails.pictures) + len(thumbnails.reasons)
        distinct = list(dict.fromkeys(thumbnails.reasons))
        shown = _items(distinct[:_MAX_REASONS])
        more = "<li>…</li>" if len(distinct) > _MAX_REASONS else ""
        missing = (
            f'<div class="notes">{len(thumbnails.reasons)} of {wanted} originals could not be read:'
            f"<ul>{shown}{more}</ul></div>\n"
        )
    return (
        f"<h2>Examples of {escape(encoder)} at {examples[0].bits} bits</h2>\n"
        '<p class="about">Queries from the best to the worst average precision (AP), evenly spaced, each with its '
        "nearest images. <b>✓</b> and a green frame: shares a label; <b>✗</b> and a red frame: does not. The number is "
        f"the Hamming distance.</p>\n{missing}" + "\n".join(_example(one, thumbnails) for one in examples)
    )


def _example(example: Example, thumbnails: Thumbnails) -> str:
    row = example.query
    neighbors = "".join(_neighbor(one, thumbnails) for one in example.neighbors)
    return (
        f'<section class="example"><header>{_picture(row, thumbnails)}<h3>{escape(row.key)}'
        f"<small>{escape(_labels(row))}</small><small>AP {example.average_precision:.3f}</small></h3></header>"
        f'<ol class="neighbors">{neighbors}</ol></section>'
    )


def _neighbor(neighbor: ExampleNeighbor, thumbnails: Thumbnails) -> str:
    kind, mark, word = (' class="relevant"', "✓", "relevant") if neighbor.relevant else ("", "✗", "not relevant")
    return (
        f'<li{kind}>{_picture(neighbor.row, thumbnails)}<b role="img" aria-label="{word}">{mark}</b> '
        f"{neighbor.distance}</li>"
    )


def _picture(row: Row, thumbnails: Thumbnails) -> str:
    text = escape(f"{row.key}, {_labels(row)}")
    source = thumbnails.pictures.get(_original(row))
    if source is None:
        return f'<span class="picture" title="{text}">no image</span>'
    return f'<img class="picture" src="{source}" alt="{text}" title="{text}">'


def _original(row: Row) -> Original:
    return Original(row.shard, row.offset, row.size)


def _labels(row: Row) -> str:
    return f"label {', '.join(map(str, row.labels))}" if row.labels else "no label"


def _provenance(evaluation: Evaluation, uris: Locations) -> str:
    entries = _sources(evaluation.encoder_digest, evaluation.tables, uris.main)
    for one in evaluation.compared:
        sources = _sources(one.encoder_digest, one.tables, uris.compared[one.name])
        entries += [(f"{one.name}: {name}", about) for name, about in sources]
    asked = f" (asked for {evaluation.k_asked:,})" if evaluation.k_asked != evaluation.k else ""
    entries += [
        ("k", f"{evaluation.k:,}{asked}"),
        ("seed", f"{evaluation.seed} (baselines, bootstrap of {evaluation.bootstrap_resamples:,} resamples)"),
        ("versions", escape(", ".join(f"{name} {version}" for name, version in evaluation.versions.items()))),
    ]
    rows = [f'<tr><th scope="row">{escape(name)}</th><td>{value}</td></tr>' for name, value in entries]
    return (
        "<h2>Where this comes from</h2>\n"
        '<p class="about">Digests are SHA-256. All numbers are also in metrics.json beside this page.</p>\n'
        f'<table class="provenance fine"><tbody>{"".join(rows)}</tbody></table>'
    )


def _sources(digest: str, tables: Iterable[TableRecord], uris: Mapping[str, str]) -> list[tuple[str, str]]:
    """Names and HTML about an encoder and its tables."""
    entries = [("encoder", f"{_uri(uris['encoder'])}<code>{escape(digest)}</code>")]
    for table in tables:
        about = (
            f"{_uri(uris[table.role])}<code>{escape(table.digest)}</code><br>"
            f"{table.rows:,} rows; dataset <code>{escape(table.dataset_digest)}</code>"
        )
        entries.append((f"{table.role.replace('_', ' ')} table", about))
    return entries


def _uri(uri: str) -> str:
    return f"{escape(uri)}<br>"


def _value(value: float, interval: Interval, columns: int = 1) -> str:
    span = f' colspan="{columns}"' if columns > 1 else ""
    return f"<td{span}>{value:.4f}<small>{interval.low:.3f} – {interval.high:.3f}</small></td>"


def _difference(margin: Margin | None) -> str:
    if margin is None:
        return "<td>–</td>"
    low, high = margin.interval.low, margin.interval.high
    return f"<td>{margin.difference:+.4f}<small>{low:+.4f} to {high:+.4f}</small></td>"


def _table(kind: str, head: Sequence[str], rows: Iterable[str]) -> str:
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{columns}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cells(values: Iterable[str]) -> str:
    return "".join(f"<td>{escape(value)}</td>" for value in values)


def _items(lines: Iterable[str]) -> str:
    return "".join(f"<li>{escape(line)}</li>" for line in lines)


def _name(evaluation: Evaluation, method: str) -> str:
    return escape(method_name(method, evaluation.name))
