"""`cibhash search`: finds the neighbors of image files, keys, ids or codes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cluster.service_config import SearchConfig
from jobs.runner import run_job

if TYPE_CHECKING:
    from cluster.search import SearchResult


def run(config: SearchConfig) -> "SearchResult | dict[str, Any]":
    """Does the work; `--dry-run` reads the index's manifest alone."""
    from cluster.index.versions import open_index

    if config.dry_run:
        if not config.index:
            return {"url": config.url}
        index = open_index(config.index)
        return {"index_uri": index.uri, "version": index.manifest.version, "count": index.manifest.count}
    from cluster.search import search

    return search(config)


def table(result: "SearchResult") -> str:
    """What a person sees at the end."""
    from cluster.search import format_table

    return format_table(result)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job from the command line; returns the exit code."""
    return run_job("search", SearchConfig, run, argv, table=table)


if __name__ == "__main__":
    raise SystemExit(main())
