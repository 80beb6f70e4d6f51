"""The frame of every report: one HTML page that needs no other file, no network and no script.

Knows nothing of what is reported.
"""

from collections.abc import Iterable
from html import escape
from importlib import resources

_BASE = "cluster.reports", "report.css"


def report_page(title: str, sections: Iterable[str], *sheets: tuple[str, str]) -> str:
    """The page.

    Args:
        title: Of the document, escaped here.
        sections: HTML; empty ones are left out.
        sheets: Package and file of style sheets beside the one that all reports share.
    """
    style = "".join(resources.files(package).joinpath(name).read_text() for package, name in (_BASE, *sheets))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )
