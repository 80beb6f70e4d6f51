"""The command that repeats a job, for its report.

Knows nothing of how commands are parsed, but how they are written.
"""

import shlex
from collections.abc import Iterator

from pydantic import BaseModel

from cluster.config import JobConfig
from cluster.redaction import redacted


def command_line(config: JobConfig, job: str = "evaluate") -> str:
    """`cibhash JOB` with every option that is not at its default, quoted for a shell, without credentials."""
    return redacted(shlex.join(["cibhash", job, *_options(config, "")]))


def _options(config: BaseModel, prefix: str) -> Iterator[str]:
    for name, field in type(config).model_fields.items():
        value, option = getattr(config, name), f"{prefix}{name.replace('_', '-')}"
        if isinstance(value, BaseModel):
            yield from _options(value, f"{option}.")
        elif field.is_required() or value != field.get_default(call_default_factory=True):
            if isinstance(value, bool):
                head, _, last = option.rpartition(".")
                yield f"--{option}" if value else f"--{head}{'.' if head else ''}no-{last}"
            else:
                yield f"--{option}"
                yield from (str(one) for one in (value if isinstance(value, tuple) else (value,)))
