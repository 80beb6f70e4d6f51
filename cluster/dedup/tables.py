"""The result of a search for duplicates as plain text: one sentence, and a table for the terminal.

Knows nothing of files and pages.
"""

import io
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.dedup.results import DedupManifest
from cluster.doctor.tables import percent, visible

if TYPE_CHECKING:
    from cluster.dedup.dedup import DedupResult

_TERMINAL_COLUMNS = 110
LARGE_SHARE = 0.02
"""A group of more of all images is told of: few datasets have one, but a radius too large makes one."""


def verdict(found: DedupManifest) -> str:
    """What was found, in a few sentences."""
    how = f"within radius {found.radius} of {found.bits} bits"
    confirmed = f", confirmed at {found.inputs.confirm:g}" if found.inputs.confirm else ""
    told = [
        f"{found.images:,} images: {found.pairs:,} pairs {how}{confirmed}, {found.groups:,} groups, "
        f"{found.duplicates:,} images ({percent(found.duplicates / found.images)}) beside a representative."
    ]
    if found.disagreeing_groups:
        told.append(f"Labels disagree in {found.disagreeing_groups:,} groups.")
    for one in found.overlaps:
        if one.split != one.other and one.images[-1]:
            total = next(split.images for split in found.splits if split.name == one.split)
            share = percent(one.images[-1] / total)
            told.append(f"{one.images[-1]:,} images of {one.split} ({share}) have one in {one.other}.")
    if found.unlisted:
        what = "were not looked at" if found.inputs.confirm else "are counted but not listed"
        told.append(f"{found.unlisted:,} further pairs of large groups {what} (--pairs-per-group).")
    if found.unreadable:
        told.append(f"{found.unreadable:,} pairs could not be looked at: an original cannot be read.")
    if found.largest_group > max(2, LARGE_SHARE * found.images) and not found.inputs.confirm:
        share = percent(found.largest_group / found.images)
        told.append(
            f"The largest group has {share} of all images: these codes do not tell near-duplicates from similar images "
            "at this radius (--confirm looks at the images)."
        )
    return " ".join(told)


def format_table(result: "DedupResult") -> str:
    """The splits and what they share, and the verdict."""
    table = Table(title=f"Images with a near-duplicate in ..., radius {result.radius}")
    table.add_column("split")
    table.add_column("images", justify="right")
    names = list(result.splits)
    several = len(names) > 1
    for name in names if several else ():
        table.add_column(Text(visible(name)), justify="right")
    for name, count in result.splits.items():
        cells = (
            "" if other == name else f"{result.shared.get(f'{name} in {other}', 0):,}" for other in names if several
        )
        table.add_row(Text(visible(name)), f"{count:,}", *cells)
    sink = io.StringIO()
    console = Console(file=sink, width=_TERMINAL_COLUMNS)
    if several:
        console.print(table)
    console.print(visible(result.verdict), markup=False, highlight=False)
    return sink.getvalue().rstrip()
