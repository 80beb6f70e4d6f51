"""The table that is reproduced: protocols, published numbers, and rows that say what to train; as YAML.

Knows nothing of recipes but their names, and of how rows are run. The packaged table is the paper's (`paper.yaml`).
"""

import difflib
from fnmatch import fnmatchcase
from importlib import resources
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator
from yaml import YAMLError

from cibhash.errors import ConfigError, NotFound
from cluster import storage
from cluster.config import CodeLengths, Section, Seed, check_lengths
from cluster.plain_yaml import load_yaml, yaml_problem
from cluster.reproduction.published import MapAtK, Protocol, Published, Text

PACKAGED = "paper.yaml"


class Band(Section):
    """What the numbers of a row are expected to be."""

    low: dict[int, MapAtK]
    """By code length: at least."""
    high: dict[int, MapAtK] = Field(default_factory=dict)
    """By code length: at most, where there is a limit."""
    source: Text

    def holds(self, bits: int, value: float) -> bool | None:
        """Whether the value is within the band; None where nothing is expected of this length."""
        if bits not in self.low:
            return None
        return self.low[bits] <= value <= self.high.get(bits, 1.0)


def _checked(lengths: tuple[int, ...]) -> tuple[int, ...]:
    check_lengths(lengths)
    return lengths


class Row(Section):
    """One method over one dataset, at several code lengths."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    method: Text
    protocol: Text
    backbone: Text
    """As tables call it; the recipes say what it is."""
    recipes: Annotated[tuple[Text, ...], Field(min_length=1)]
    """Names of packaged recipes, or recipe files; later ones over earlier ones."""
    bits: Annotated[CodeLengths, AfterValidator(_checked), Field(min_length=1)]
    training: Literal["per_length", "nested"]
    """One model for every length, as the paper has it; or one whose code holds the shorter ones as prefixes."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    at: dict[int, dict[str, Any]] = Field(default_factory=dict)
    """Settings over the recipes' at some lengths, where every length has a model."""
    monitor_split: str = ""
    """Split whose images, with labels, are looked at in training instead of held-out training images."""
    published: str = ""
    """Name of the published numbers that the row reproduces."""
    expect: Band | None = None
    ablation_of: str = ""
    """Name of the row from which this one differs in one setting."""
    baselines: bool = False
    """Evaluate the baselines on this row's features too."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Datasets that the row needs."""
        named = ("train", "query", "database", self.monitor_split)
        return tuple(dict.fromkeys(split for split in named if split))

    @model_validator(mode="after")
    def _check(self) -> "Row":
        known = set(self.bits)
        band = self.expect.low | self.expect.high if self.expect else {}
        for field, lengths in (("at", self.at), ("expect", band)):
            if unknown := sorted(set(lengths) - known):
                raise ValueError(f"row {self.name}: {field}: {unknown[0]} bits are not among {sorted(known)}")
        if self.at and self.training == "nested":
            raise ValueError(f"row {self.name}: at: a nested code has one training for all lengths")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"row {self.name}: seeds: one is named twice")
        return self


class PaperTable(Section):
    """Everything that the YAML says."""

    protocols: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")], Protocol]
    published: tuple[Published, ...] = ()
    rows: tuple[Row, ...] = ()

    def published_for(self, protocol: str) -> tuple[Published, ...]:
        """What was published under a protocol."""
        return tuple(one for one in self.published if protocol in one.protocols)

    def published_of(self, row: Row) -> Published | None:
        """What the row reproduces, None where no number is known."""
        return next((one for one in self.published if one.name == row.published), None)

    @model_validator(mode="after")
    def _check(self) -> "PaperTable":
        for kind, names in (("row", [row.name for row in self.rows]), ("published", [p.name for p in self.published])):
            if twice := [name for number, name in enumerate(names) if name in names[:number]]:
                raise ValueError(f"{kind} {twice[0]}: the name comes twice")
        for one in self.published:
            if unknown := [name for name in one.protocols if name not in self.protocols]:
                raise ValueError(f"published {one.name}: no protocol {unknown[0]!r}")
        rows = {row.name: row for row in self.rows}
        for row in self.rows:
            if row.protocol not in self.protocols:
                raise ValueError(f"row {row.name}: no protocol {row.protocol!r}")
            if row.published and row.published not in {one.name for one in self.published_for(row.protocol)}:
                raise ValueError(f"row {row.name}: nothing published {row.published!r} under {row.protocol}")
            base = rows.get(row.ablation_of)
            if row.ablation_of and (base is None or base.ablation_of or base.protocol != row.protocol):
                raise ValueError(f"row {row.name}: ablation_of {row.ablation_of!r}: no such row under {row.protocol}")
        return self


def load_table(uri: str = "") -> PaperTable:
    """The packaged table, or the one at `uri`.

    Raises:
        ConfigError: no such file, not YAML, or not a table; one line that names the first mistake.
    """
    label = uri or PACKAGED
    try:
        content = load_yaml(storage.read_bytes(uri) if uri else _packaged())
    except NotFound:
        raise ConfigError(f"table {label}: no such file") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"table {label}:{yaml_problem(error)}") from None
    try:
        return PaperTable.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = " ".join(first["msg"].removeprefix("Value error, ").split())
        raise ConfigError(f"table {label}: {where + ': ' if where else ''}{message}") from None


def find_protocol(table: PaperTable, name: str) -> Protocol:
    """A protocol by name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in table.protocols:
        close = difflib.get_close_matches(name, table.protocols, n=1)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(table.protocols)}"
        raise ConfigError(f"protocol {name!r}: {hint}")
    return table.protocols[name]


def select_rows(table: PaperTable, patterns: str) -> tuple[Row, ...]:
    """The rows whose names match, in the table's order; all where no pattern is given.

    Args:
        table: With all rows.
        patterns: Names, in which `*` and `?` stand for anything, separated by commas.

    Raises:
        ConfigError: a pattern matches no row.
    """
    wanted = [pattern.strip() for pattern in patterns.split(",") if pattern.strip()]
    names = [row.name for row in table.rows]
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in names):
            close = difflib.get_close_matches(pattern, names, n=1)
            hint = f"did you mean {close[0]}?" if close else f"rows are {', '.join(names)}"
            raise ConfigError(f"rows {pattern!r}: no such row: {hint}")
    if not wanted:
        return table.rows
    return tuple(row for row in table.rows if any(fnmatchcase(row.name, pattern) for pattern in wanted))


def _packaged() -> str:
    return resources.files("cluster.reproduction").joinpath(PACKAGED).read_text(encoding="utf-8")
