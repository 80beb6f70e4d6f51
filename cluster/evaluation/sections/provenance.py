"""The last section of the report: encoders, tables, splits, seeds, versions, and the command that repeats it.

Knows nothing of how the numbers came about.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape

from cluster.evaluation.results import Evaluation, TableRecord


@dataclass(frozen=True)
class Origin:
    """Where an evaluation comes from, beside what its results say."""

    command: str
    """That repeats it."""
    main: Mapping[str, str]
    """Where the tables, by role, and the encoder (`encoder`) lie."""
    compared: Mapping[str, Mapping[str, str]]
    """The same by name of the compared encoder."""


def provenance(evaluation: Evaluation, origin: Origin) -> str:
    """Names and contents, as a table."""
    entries = _sources(evaluation.encoder_digest, evaluation.tables, origin.main)
    for one in evaluation.compared:
        sources = _sources(one.encoder_digest, one.tables, origin.compared[one.name])
        entries += [(f"{one.name}: {name}", about) for name, about in sources]
    asked = f" (asked for {evaluation.k_asked:,})" if evaluation.k_asked != evaluation.k else ""
    entries += [
        ("k", f"{evaluation.k:,}{asked}"),
        ("seed", f"{evaluation.seed} (baselines, bootstrap of {evaluation.bootstrap_resamples:,} resamples)"),
        ("command", f"<code>{escape(origin.command)}</code>"),
        ("versions", escape(", ".join(f"{name} {version}" for name, version in evaluation.versions.items()))),
    ]
    if (table := evaluation.query_table) is not None:
        entries.append((table.path, f"<code>{escape(table.sha256)}</code><br>{table.rows:,} rows"))
    rows = [f'<tr><th scope="row">{escape(name)}</th><td>{value}</td></tr>' for name, value in entries]
    return (
        "<h2>Where this comes from</h2>\n"
        '<p class="about">Digests are SHA-256. All numbers are also in metrics.json beside this page, '
        "those of every query in queries.parquet.</p>\n"
        f'<table class="provenance fine"><tbody>{"".join(rows)}</tbody></table>'
    )


def _sources(digest: str, tables: Iterable[TableRecord], uris: Mapping[str, str]) -> list[tuple[str, str]]:
    """Names and HTML about an encoder and its tables."""
    entries = [("encoder", f"{_uri(uris['encoder'])}<code>{escape(digest)}</code>")]
    for table in tables:
        about = (
            f"{_uri(uris[table.role])}<code>{escape(table.digest)}</code><br>"
            f"{table.rows:,} rows; {_split(table)} <code>{escape(table.dataset_digest)}</code>"
        )
        entries.append((f"{table.role.replace('_', ' ')} table", about))
    return entries


def _split(table: TableRecord) -> str:
    return f"dataset {escape(table.dataset)}, split {escape(table.split)}" if table.dataset else "dataset"


def _uri(uri: str) -> str:
    return f"{escape(uri)}<br>"
