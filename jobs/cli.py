"""The console script `cibhash`: finds the job, or says what there is.

Knows nothing of the jobs but their names: nothing heavy is imported before a job is chosen.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence
from importlib import metadata

COMMANDS = {
    "pack": "pack images into tar shards",
    "adopt": "make a dataset of tar shards that are there, without copying",
    "doctor": "check tar shards before GPU time is spent",
    "train": "train a hash encoder, without labels",
    "sweep": "train many heads on the same cached views and compare them",
    "encode": "encode a dataset into a table of binary codes",
    "dedup": "find near-duplicates in code tables, and what splits share",
    "plan": "choose length, kind, shards and replicas of an index, from a sample",
    "index": "build a new version of a search index from codes",
    "serve": "serve an index and its search page over HTTP",
    "search": "find the neighbors of image files, keys, ids or codes",
    "retrieve": "find the neighbors of a whole code table, Parquet in and out",
    "evaluate": "measure retrieval exactly and write the report",
    "drift": "compare the codes of an old encoder with those of a new one, and say whether to switch",
    "reproduce": "run the rows of the paper's tables that can run, beside the published numbers",
    "demo": "all of it on 1,797 handwritten digits, in minutes",
}
USAGE_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `cibhash COMMAND ...`; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        sys.stderr.write(overview())
        return USAGE_ERROR
    command = arguments.pop(0)
    if command in ("-h", "--help", "help"):
        sys.stdout.write(overview())
        return 0
    if command == "--version":
        sys.stdout.write(f"cibhash {metadata.version('cibhash')}\n")
        return 0
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(COMMANDS)}"
        sys.stderr.write(f"cibhash: error: unknown command {command!r}: {hint}\n")
        return USAGE_ERROR
    code = importlib.import_module(f"jobs.{command}").main(arguments)
    return int(code) if argv is not None else _leave(int(code))


def _leave(code: int) -> int:
    from jobs.runner import leave

    return leave(code)


def overview() -> str:
    """What `cibhash --help` prints."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return _OVERVIEW.format(commands=commands)


_OVERVIEW = """\
usage: cibhash COMMAND [RECIPE ...] [options]

Image search by binary codes, learned without labels.

commands:
{commands}

from images to search:
  cibhash pack photos/ --output data --splits query=0.1,database=0.9
  cibhash doctor data
  cibhash train resnet50 neighbour --dataset data/database --output encoder --bits 16,32,64
  cibhash encode --encoder encoder --dataset data/database --output codes/database
  cibhash encode --encoder encoder --dataset data/query --output codes/query
  cibhash evaluate --queries codes/query --database codes/database --output report
  cibhash plan --codes codes/database --items 100000000 --memory-per-node 16GiB --latency-ms 50
  cibhash index --codes codes/database --output index
  cibhash serve --index index --encoder encoder

A recipe is a YAML file or, for train, the name of a packaged one (`cibhash train --help` lists them): later ones
override earlier ones, options override all. Locations are plain paths or s3://bucket/prefix. `cibhash COMMAND --help`
lists every option; --dry-run prints the resolved plan and touches nothing; --traceback shows where a failure arose.
The last line on stdout is one JSON object, everything else goes to stderr; `python -m jobs.COMMAND` does the same.
"""

if __name__ == "__main__":
    raise SystemExit(main())
