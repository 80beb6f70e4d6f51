"""The section of example queries as rows of images.

Knows nothing of how queries were chosen. Originals are read here; those that cannot be are named.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from cluster.evaluation.examples import Example, ExampleNeighbor
from cluster.evaluation.results import Evaluation
from cluster.index.shard_index import Row
from cluster.originals import Original
from cluster.reports import html
from cluster.reports.thumbnails import Thumbnails, read_thumbnails

_MAX_REASONS = 3


@dataclass(frozen=True)
class _Pictures:
    """What images look like and what their labels are called."""

    thumbnails: Thumbnails
    names: Mapping[int, str]

    def labels(self, row: Row) -> str:
        shown = [f"{one} ({self.names[one]})" if one in self.names else str(one) for one in row.labels]
        return f"label {', '.join(shown)}" if shown else "no label"


def examples_section(evaluation: Evaluation, examples: Sequence[Example]) -> str:
    """The best queries, then the worst; empty without any."""
    if not examples:
        return ""
    rows = [row for one in examples for row in (one.query, *(neighbor.row for neighbor in one.neighbors))]
    thumbnails = read_thumbnails(_original(row) for row in rows)
    pictures = _Pictures(thumbnails, {one.label: one.name for one in evaluation.classes if one.name})
    parts = [
        f"<h2>Best and worst queries of {escape(evaluation.name)} at {examples[0].bits} bits</h2>",
        '<p class="about">The queries with the highest and the lowest average precision (AP), of those with a relevant '
        "image in the database, each with its nearest images. <b>✓</b> and a green frame: shares a label; <b>✗</b> and "
        "a red frame: does not. The number is the Hamming distance.</p>",
        _missing(thumbnails),
    ]
    for name, is_best in (("Best", True), ("Worst", False)):
        found = [_example(one, pictures) for one in examples if one.is_best == is_best]
        parts += [f'<h3 class="group">{name}</h3>', *found] if found else []
    return "\n".join(part for part in parts if part)


def _missing(thumbnails: Thumbnails) -> str:
    if not thumbnails.reasons:
        return ""
    wanted, distinct = len(thumbnails.pictures) + len(thumbnails.reasons), list(dict.fromkeys(thumbnails.reasons))
    more = "<li>…</li>" if len(distinct) > _MAX_REASONS else ""
    return (
        f'<div class="notes">{len(thumbnails.reasons)} of {wanted} originals could not be read:'
        f"<ul>{html.items(distinct[:_MAX_REASONS])}{more}</ul></div>"
    )


def _example(example: Example, pictures: _Pictures) -> str:
    row = example.query
    neighbors = "".join(_neighbor(one, pictures) for one in example.neighbors)
    return (
        f'<section class="example"><header>{_picture(row, pictures)}<h4>{escape(row.key)}'
        f"<small>{escape(pictures.labels(row))}</small><small>AP {example.average_precision:.3f}</small></h4></header>"
        f'<ol class="neighbors">{neighbors}</ol></section>'
    )


def _neighbor(neighbor: ExampleNeighbor, pictures: _Pictures) -> str:
    kind, mark, word = (' class="relevant"', "✓", "relevant") if neighbor.relevant else ("", "✗", "not relevant")
    return (
        f'<li{kind}>{_picture(neighbor.row, pictures)}<b role="img" aria-label="{word}">{mark}</b> '
        f"{neighbor.distance}</li>"
    )


def _picture(row: Row, pictures: _Pictures) -> str:
    text = escape(f"{row.key}, {pictures.labels(row)}")
    source = pictures.thumbnails.pictures.get(_original(row))
    if source is None:
        return f'<span class="picture" title="{text}">no image</span>'
    return f'<img class="picture" src="{source}" alt="{text}" title="{text}">'


def _original(row: Row) -> Original:
    return Original(row.shard, row.offset, row.size)
