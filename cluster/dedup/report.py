"""The report of a search for duplicates: one HTML page that needs no other file, no network and no script.

Knows nothing of how they were found. Every text from outside, keys and addresses included, is escaped; images are read
here, decoded and shrunk.
"""

from collections.abc import Iterable, Sequence
from html import escape

from cluster.dedup.curves import calibration_chart, shares
from cluster.dedup.gallery import Gallery, ShownGroup, ShownImage, ShownPair
from cluster.dedup.plan import DedupPlan
from cluster.dedup.results import Calibration, DedupManifest, Overlap
from cluster.dedup.tables import LARGE_SHARE, verdict
from cluster.doctor.tables import percent, visible
from cluster.index.shard_index import Row
from cluster.originals import Original
from cluster.reports.page import report_page
from cluster.reports.thumbnails import Thumbnails, read_thumbnails

_MAX_RADII = 9
_MAX_REASONS = 3


def report_html(found: DedupManifest, gallery: Gallery, plan: DedupPlan) -> str:
    """The page; images that cannot be read leave a gap and are named."""
    title = ", ".join(visible(name) for name in plan.names)
    images = [image for group in gallery.groups for image in group.images]
    images += [image for pair in (*gallery.between, *gallery.within) for image in (pair.first, pair.second)]
    thumbnails = read_thumbnails(_original(image.row) for image in images)
    sections = (
        _head(found, escape(title)),
        _overlaps(found),
        _distances(found),
        _calibration(found),
        _unread(thumbnails),
        _pairs("Pairs between splits", found, gallery.between, thumbnails),
        _pairs("Pairs within a split" if len(plan.splits) > 1 else "Pairs", found, gallery.within, thumbnails),
        _groups(found, gallery.groups, thumbnails),
        _provenance(found, plan),
    )
    return report_page(f"{title} – near-duplicates", sections, ("cluster.dedup", "report.css"))


def _head(found: DedupManifest, title: str) -> str:
    confirmed = (
        f" A pair counts only if its originals correlate by at least {found.inputs.confirm:g} at 16 x 16 pixels, "
        "mirrored or not."
        if found.inputs.confirm
        else " Nobody has looked at the images: a pair is two codes that are close."
    )
    doubtful = found.unlisted or found.unreadable or found.largest_group > LARGE_SHARE * found.images
    html = [
        '<p class="kicker">Near-duplicates</p>',
        f"<h1>{title}</h1>",
        f'<p class="lead">All pairs of images whose codes differ in at most {found.radius} of {found.bits} bits, '
        f"exactly; images that such pairs connect make a group.{confirmed}</p>",
        f'<p class="verdict{" lost" if doubtful else ""}" role="status">{escape(visible(verdict(found)))}</p>',
    ]
    if found.notes:
        html.append(f'<ul class="notes">{_items(found.notes)}</ul>')
    return "\n".join(html)


def _overlaps(found: DedupManifest) -> str:
    radii = _shown_radii(found.radius)
    rows = []
    totals = {split.name: split.images for split in found.splits}
    for one in found.overlaps:
        name = "another of the same split" if one.split == one.other else escape(visible(one.other))
        cells = "".join(_share_cell(one, radius, totals[one.split]) for radius in radii)
        rows.append(
            f'<tr><th scope="row">{escape(visible(one.split))}</th><td class="text">{name}</td>'
            f"<td>{totals[one.split]:,}</td>{cells}</tr>"
        )
    head = ("images of", "that have a near-duplicate in", "of", *(f"radius {radius}" for radius in radii))
    return (
        '<h2>What splits share</h2>\n<p class="about">Images with at least one other image within a radius'
        f"{', confirmed' if found.inputs.confirm else ''}. Test images that training has seen make results look better "
        "than they are.</p>\n" + _table(head, rows, "shared fine")
    )


def _share_cell(overlap: Overlap, radius: int, total: int) -> str:
    count = overlap.images[radius]
    return f"<td>{count:,}<small>{percent(count / total)}</small></td>"


def _shown_radii(radius: int) -> list[int]:
    step = -(-(radius + 1) // _MAX_RADII)
    return sorted({radius, *range(0, radius + 1, step)})


def _distances(found: DedupManifest) -> str:
    rows = []
    for distance in range(found.radius + 1):
        kept = sum(one.pairs[distance] for one in found.overlaps if one.split == one.other)
        kept += sum(one.pairs[distance] for one in found.overlaps if one.split != one.other) // 2
        confirmed = f"<td>{kept:,}</td>" if found.inputs.confirm else ""
        rows.append(f'<tr><th scope="row">{distance}</th><td>{found.candidates[distance]:,}</td>{confirmed}</tr>')
    head = ["distance", "pairs of images", *(["confirmed"] if found.inputs.confirm else [])]
    what = "looked at" if found.inputs.confirm else "listed"
    limit = f"{found.inputs.pairs_per_group:,} pairs of a group are {what}, the closest ones"
    beyond = f"; {found.unlisted:,} further ones are in these counts alone" if found.unlisted else ""
    return (
        f'<h2>Pairs by distance</h2>\n<p class="about">At most {limit}{beyond}. {found.distinct_codes:,} codes of '
        f"{found.images:,} images are distinct.</p>\n" + _table(head, rows)
    )


def _calibration(found: DedupManifest) -> str:
    if (calibration := found.calibration) is None:
        return ""
    copies = shares(calibration.copies)
    nearest = shares(calibration.nearest)
    rows = []
    for radius in range(min(max(found.radius + 3, 7), found.bits)):
        pairs, same = sum(calibration.pairs[: radius + 1]), sum(calibration.sharing[: radius + 1])
        cells = (
            percent(copies[radius]) if calibration.copies else "–",
            percent(nearest[radius]),
            f"{pairs:,}",
            percent(same / pairs) if calibration.sharing and pairs else "–",
        )
        mark = ' class="ours"' if radius == found.radius else ""
        rows.append(f'<tr{mark}><th scope="row">{radius}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
    head = ("radius", "copies found", "have another", "pairs", "share a label")
    return (
        f'<h2>What a radius means</h2>\n<p class="about">{_sample(calibration)}</p>\n'
        f'{_table(head, rows)}<div class="charts"><figure>{calibration_chart(calibration, found.radius)}</figure></div>'
    )


def _sample(calibration: Calibration) -> str:
    suggested = (
        f"the largest radius within which at most {percent(calibration.max_confused)} of the images have another is "
        f"{calibration.suggested}"
        if calibration.suggested is not None
        else f"more than {percent(calibration.max_confused)} of the images share their code with another one: no "
        "radius tells copies from other images"
    )
    copies = (
        f"{sum(calibration.copies):,} copies, cropped to 80 to 100 % of the area, with colors changed by up to 20 % "
        "and half of them blurred, are held against their originals. "
        if calibration.copies
        else "No copies were made. "
    )
    why = f"{escape(visible(calibration.why_no_copies))}. " if calibration.why_no_copies else ""
    return (
        f"{calibration.sampled:,} sampled images are compared with all others: how many have another one within the "
        f"radius, how many pairs that makes, and how many of these share a label. {copies}{why}That another image is "
        f"close does not make it a duplicate: {suggested}."
    )


def _pairs(title: str, found: DedupManifest, pairs: Sequence[ShownPair], thumbnails: Thumbnails) -> str:
    if not pairs:
        return ""
    shown = "".join(_pair(pair, thumbnails) for pair in pairs)
    return (
        f'<h2>{title}</h2>\n<p class="about">Evenly spaced among the listed pairs of each distance, not the best ones. '
        f'<b>≠</b> and a red frame: the labels differ.</p>\n<div class="pairs">{shown}</div>'
    )


def _pair(pair: ShownPair, thumbnails: Thumbnails) -> str:
    differs = _differ(pair.first.row, pair.second.row)
    correlation = "" if pair.correlation is None else f", correlation {pair.correlation:.3f}"
    mark = '<b role="img" aria-label="labels differ">≠</b> ' if differs else ""
    images = "".join(
        f"<div>{_picture(one.row, thumbnails)}{escape(visible(one.row.key))}<small>{escape(visible(one.split))}, "
        f"{_labels(one.row)}</small></div>"
        for one in (pair.first, pair.second)
    )
    return (
        f'<figure class="pair{" differs" if differs else ""}">{images}<figcaption>{mark}distance '
        f"{pair.first.distance}{correlation}</figcaption></figure>"
    )


def _groups(found: DedupManifest, groups: Sequence[ShownGroup], thumbnails: Thumbnails) -> str:
    if not groups:
        return ""
    return (
        f'<h2>Groups</h2>\n<p class="about">The largest, and some evenly spaced among all {found.groups:,}. Green '
        "frame: the representative, the smallest id of the first-named split; <b>≠</b> and a red frame: labels that "
        "differ from its. The number is the distance to it.</p>\n"
        + "\n".join(_group(group, thumbnails) for group in groups)
    )


def _group(group: ShownGroup, thumbnails: Thumbnails) -> str:
    head = group.images[0]
    differing = sum(_differ(head.row, one.row) for one in group.images)
    told = f"; labels differ in {differing}" if differing else ""
    more = group.size - len(group.images)
    beyond = f" ({more:,} more)" if more else ""
    images = "".join(_member(one, head, thumbnails) for one in group.images)
    return (
        f'<section class="group"><h3>Group {group.number}: {group.size:,} images{beyond}{told}</h3>'
        f'<ol class="rows">{images}</ol></section>'
    )


def _member(image: ShownImage, head: ShownImage, thumbnails: Thumbnails) -> str:
    if image is head:
        kind, mark = ' class="kept"', '<b role="img" aria-label="representative">✓</b> '
    elif _differ(head.row, image.row):
        kind, mark = ' class="differs"', '<b role="img" aria-label="labels differ">≠</b> '
    else:
        kind, mark = "", ""
    return (
        f"<li{kind}>{_picture(image.row, thumbnails)}{mark}{image.distance}"
        f"<small>{escape(visible(image.split))}</small></li>"
    )


def _differ(first: Row, second: Row) -> bool:
    """Both have labels and share none."""
    return bool(first.labels and second.labels and not {*first.labels} & {*second.labels})


def _picture(row: Row, thumbnails: Thumbnails) -> str:
    text = escape(f"{visible(row.key)}, {_labels(row)}")
    source = thumbnails.pictures.get(_original(row))
    if source is None:
        return f'<span class="picture" title="{text}">no image</span>'
    return f'<img class="picture" src="{source}" alt="{text}" title="{text}">'


def _original(row: Row) -> Original:
    return Original(row.shard, row.offset, row.size)


def _labels(row: Row) -> str:
    return f"label {', '.join(map(str, row.labels))}" if row.labels else "no label"


def _unread(thumbnails: Thumbnails) -> str:
    if not thumbnails.reasons:
        return ""
    distinct = list(dict.fromkeys(thumbnails.reasons))
    more = "<li>…</li>" if len(distinct) > _MAX_REASONS else ""
    wanted = len(thumbnails.pictures) + len(thumbnails.reasons)
    return (
        f'<div class="notes">{len(thumbnails.reasons):,} of {wanted:,} images to show could not be read:'
        f"<ul>{_items(distinct[:_MAX_REASONS])}{more}</ul></div>"
    )


def _provenance(found: DedupManifest, plan: DedupPlan) -> str:
    entries = [("encoder", f"{escape(plan.encoder_uri)}<br><code>{escape(found.encoder_digest)}</code>")]
    for record, split in zip(found.splits, plan.splits, strict=True):
        entries.append(
            (
                escape(visible(record.name)),
                f"{escape(split.table.uri)}<br><code>{escape(record.digest)}</code><br>{record.images:,} images, "
                f"{record.duplicates:,} of them beside a representative; dataset <code>{record.dataset_digest}</code>",
            )
        )
    entries.append(("radius", f"{found.radius} (asked for: {escape(found.inputs.radius)})"))
    rows = "".join(f'<tr><th scope="row">{name}</th><td>{value}</td></tr>' for name, value in entries)
    return (
        '<h2>Where this comes from</h2>\n<p class="about">Digests are SHA-256. dedup.json beside this page has all '
        "numbers and the digests of the Parquet files.</p>\n"
        f'<table class="provenance fine"><tbody>{rows}</tbody></table>'
    )


def _table(head: Iterable[str], rows: Iterable[str], kind: str = "fine") -> str:
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{columns}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _items(lines: Iterable[str]) -> str:
    return "".join(f"<li>{escape(visible(line))}</li>" for line in lines)
