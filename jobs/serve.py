"""`cibhash serve`: serves an index and its search page over HTTP until interrupted."""

from collections.abc import Sequence
from typing import Any

from cluster.service_config import ServeConfig
from jobs.runner import run_job


def run(config: ServeConfig) -> dict[str, Any]:
    """Serves; `--dry-run` reads the index's manifest, tries the address and looks for GPUs if asked for them."""
    from cluster.index.versions import open_index
    from cluster.service.app import check_endpoint, check_gpu, serve

    index = open_index(config.index)
    if config.dry_run:
        check_endpoint(config)
        check_gpu(config, index.manifest)
    else:
        serve(config)
    return {
        "index_uri": index.uri,
        "version": index.manifest.version,
        "encoder_digest": index.manifest.encoder_digest,
        "count": index.manifest.count,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job from the command line; returns the exit code."""
    return run_job("serve", ServeConfig, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
