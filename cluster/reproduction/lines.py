"""The tables as lines of text: a section per protocol and one for its ablations, rows of methods, columns of lengths.

Knows nothing of Markdown, HTML and terminals.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from cluster.evaluation.results import Interval
from cluster.reproduction.measured import Measurement, differences
from cluster.reproduction.outcomes import Outcome
from cluster.reproduction.paper_table import PaperTable
from cluster.reproduction.published import EVIDENCE_ABOUT, Published

NONE = "–"
NUMBERS_ABOUT = (
    "mAP is the expectation over all orders of equal distances, divided by the relevant images among the top k. "
    "In brackets: the bootstrap 95 % interval over queries of the mean over the seeds; ± is half the range over seeds. "
    "Published code breaks ties by an unstable sort, and the same code gave others up to several points more or less: "
    "do not read the third decimal."
)
EVIDENCE_LINE = (
    "Evidence of published numbers, in brackets after the source: "
    + "; ".join(f"{name} – {about}" for name, about in EVIDENCE_ABOUT.items())
    + "."
)
_PROTOCOL_EVIDENCE = {
    "source": "The protocol was read in released code",
    "quoted": "The protocol is as others quote it",
    "unverified": "That this is the paper's protocol is from memory, unverified",
}


@dataclass(frozen=True)
class Cell:
    """A number, and what is known of it."""

    main: str = NONE
    small: str = ""


@dataclass(frozen=True)
class Line:
    """A row of a table."""

    kind: Literal["ours", "published", "difference", "expected", "baseline"]
    method: str
    backbone: str
    cells: tuple[Cell, ...]
    origin: str
    """How it was trained, or where it is from."""
    is_good: bool | None = None
    """Whether what is expected was found; None where nothing is."""


@dataclass(frozen=True)
class TableSection:
    """One table."""

    title: str
    about: str
    lengths: tuple[int, ...]
    lines: tuple[Line, ...]
    remarks: tuple[str, ...]
    """Rows that were not run or deviate, with the reason."""


def table_sections(table: PaperTable, outcomes: Sequence[Outcome]) -> tuple[TableSection, ...]:
    """The tables of all protocols that the rows are of, each with its ablations after it."""
    sections = []
    for name in dict.fromkeys(one.row.protocol for one in outcomes):
        of_protocol = [one for one in outcomes if one.row.protocol == name]
        plain = [one for one in of_protocol if not one.row.ablation_of]
        if plain:
            sections.append(_main(plain, table.published_for(name)))
        if variants := [one for one in of_protocol if one.row.ablation_of]:
            sections.append(_ablations(variants, {one.row.name: one for one in of_protocol}))
    return tuple(sections)


def _main(outcomes: Sequence[Outcome], published: Sequence[Published]) -> TableSection:
    protocol = outcomes[0].protocol
    lengths = _lengths(outcomes, published)
    lines: list[Line] = []
    shown = set()
    for one in outcomes:
        lines.append(_ours(one, lengths))
        if one.published is not None:
            shown.add(one.published.name)
            lines += [_published("published", one.published, lengths), *_difference(one, lengths)]
        lines += _expected(one, lengths)
    for one in outcomes:
        lines += _baselines(one, lengths)
    lines += [_published(one.method, one, lengths) for one in published if one.name not in shown]
    about = f"mAP@{protocol.k}. {protocol.about}. {_PROTOCOL_EVIDENCE[protocol.evidence]}."
    return TableSection(protocol.title, about, lengths, tuple(lines), tuple(_remarks(outcomes)))


def _ablations(variants: Sequence[Outcome], rows: dict[str, Outcome]) -> TableSection:
    protocol = variants[0].protocol
    bases = [rows[name] for name in dict.fromkeys(one.row.ablation_of for one in variants) if name in rows]
    lengths = _lengths([*bases, *variants], ())
    lines: list[Line] = []
    for name in dict.fromkeys(one.row.ablation_of for one in variants):
        base = rows.get(name)
        if base is not None:
            lines.append(_ours(base, lengths))
        for one in (one for one in variants if one.row.ablation_of == name):
            lines.append(_ours(one, lengths))
            if base is not None and one.measured and base.measured:
                lines.append(_ablated(one, base, lengths))
            lines += _expected(one, lengths)
    about = (
        f"mAP@{protocol.k}. Each changes one setting of the method; in brackets of a difference: the paired 95 % "
        "interval over queries, which knows nothing of the noise of the seeds. The paper's own ablations are not known "
        "as numbers."
    )
    return TableSection(f"{protocol.title}: ablations", about, lengths, tuple(lines), tuple(_remarks(variants)))


def _lengths(outcomes: Iterable[Outcome], published: Iterable[Published]) -> tuple[int, ...]:
    ours = {bits for one in outcomes for bits in one.row.bits}
    return tuple(sorted(ours | {bits for one in published for bits in one.map}))


def _ours(one: Outcome, lengths: Sequence[int]) -> Line:
    cells = tuple(_measured(one.measured.get(bits)) for bits in lengths)
    return Line("ours", one.row.method, one.row.backbone, cells, _training(one))


def _training(one: Outcome) -> str:
    if not one.measured:
        return "not run" if not one.failures else "failed"
    how = "one nested code" if one.row.training == "nested" else "a model per length"
    seeds = sorted({seed for found in one.measured.values() for seed in found.seeds})
    return f"{how}, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _measured(found: Measurement | None) -> Cell:
    if found is None:
        return Cell()
    spread = f"; ±{found.half_range:.3f}" if len(found.seeds) > 1 else ""
    return Cell(f"{found.value:.4f}", f"{_range(found.interval)}{spread}")


def _range(interval: Interval, form: str = ".3f") -> str:
    return f"{interval.low:{form}} – {interval.high:{form}}"


def _published(method: str, one: Published, lengths: Sequence[int]) -> Line:
    cells = tuple(Cell(f"{one.map[bits]:.3f}") if bits in one.map else Cell() for bits in lengths)
    return Line("published", method, one.backbone, cells, one.origin)


def _difference(one: Outcome, lengths: Sequence[int]) -> list[Line]:
    gains = [one.gain(bits) for bits in lengths]
    if not any(gain is not None for gain in gains):
        return []
    cells = tuple(Cell() if gain is None else Cell(f"{gain:+.3f}") for gain in gains)
    other = one.published is not None and one.published.backbone != one.row.backbone
    return [Line("difference", "difference", "other backbone" if other else "", cells, "")]


def _expected(one: Outcome, lengths: Sequence[int]) -> list[Line]:
    band = one.row.expect
    if band is None:
        return []
    cells, verdicts = [], []
    for bits in lengths:
        low, high = band.low.get(bits), band.high.get(bits)
        if low is None:
            cells.append(Cell())
            continue
        within = one.in_band(bits)
        verdicts.append(within)
        limits = f"{low:.3f} – {high:.3f}" if high is not None else f"≥ {low:.3f}"
        cells.append(Cell(limits, {True: "met", False: "NOT MET", None: ""}[within]))
    known = [within for within in verdicts if within is not None]
    return [Line("expected", "expected", "", tuple(cells), band.source, all(known) if known else None)]


def _ablated(one: Outcome, base: Outcome, lengths: Sequence[int]) -> Line:
    found = differences(one.measured, base.measured)
    cells = tuple(
        Cell(f"{found[bits].value:+.4f}", _range(found[bits].interval, "+.3f")) if bits in found else Cell()
        for bits in lengths
    )
    return Line("difference", f"difference to {base.row.method}", "", cells, "")


def _baselines(one: Outcome, lengths: Sequence[int]) -> list[Line]:
    lines = []
    for baseline in one.baselines:
        cells = tuple(
            Cell(f"{baseline.by_bits[bits][0]:.4f}", _range(baseline.by_bits[bits][1]))
            if bits in baseline.by_bits
            else Cell()
            for bits in lengths
        )
        lines.append(Line("baseline", baseline.name, one.row.backbone, cells, "same features"))
    return lines


def _remarks(outcomes: Sequence[Outcome]) -> list[str]:
    missing: dict[str, list[str]] = {}
    for one in outcomes:
        for reason in one.missing:
            missing.setdefault(reason, []).append(one.row.name)
    remarks = [f"Not run: {', '.join(names)}: {reason}" for reason, names in missing.items()]
    for one in outcomes:
        remarks += [f"FAILED: {failure}" for failure in one.failures]
        if one.measured and one.deviations:
            remarks.append(f"{one.row.name} is not held against published numbers: {'; '.join(one.deviations)}")
    return remarks
