"""Ray tasks over the parts of one table, and some columns of all its rows in their order.

Knows nothing of what the columns are for.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray

from cluster.code_tables import read_part
from cluster.evaluation.plan import Table
from cluster.in_flight import completed, default_limit, named_call
from cluster.manifests import CodePart


def part_calls(table: Table, task: Any, what: str, *arguments: Any) -> Iterator[tuple[int, Callable[[], Any]]]:
    """A call of a remote function with (URI, part, arguments) for every part, by its number."""
    for number, part in enumerate(table.parts):
        yield number, named_call(task, f"{what} {part.path}", table.uri, part, *arguments)


def read_columns(table: Table, columns: Sequence[str]) -> pa.Table:
    """These columns of all rows, in the order in which queries are scored."""
    found = dict(completed(part_calls(table, _read, ", ".join(columns), tuple(columns)), default_limit()))
    return pa.concat_tables([found[number] for number in range(len(found))])


@ray.remote
def _read(uri: str, part: CodePart, columns: tuple[str, ...]) -> pa.Table:
    return read_part(uri, part, columns)
