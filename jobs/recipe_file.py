"""Reads recipes: YAML mappings of config fields, by location or by a packaged recipe's name, over those they extend.

Knows nothing of the fields.
"""

import difflib
import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

import yaml

from cibhash.errors import CIBHashError, ConfigError, NotFound
from cluster import storage
from cluster.plain_yaml import load_yaml, yaml_problem

RECIPE_SUFFIXES = (".yaml", ".yml")
_PACKAGED = resources.files("jobs") / "recipes"
_EXTENDS = "extends"


@dataclass(frozen=True)
class Layer:
    """What one recipe sets itself."""

    recipe: str
    """Its name or location, for messages."""
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class _Source:
    """A recipe found."""

    label: str
    """As in Layer."""
    uri: str

    @property
    def identity(self) -> str:
        """Equal for all ways to write its location."""
        return self.uri if storage.is_s3(self.uri) else os.path.realpath(self.uri)


def packaged_recipes() -> dict[str, str]:
    """The packaged recipes by name, each with the first line of its comment."""
    lines = {name: _packaged(name).read_text(encoding="utf-8").partition("\n")[0] for name in packaged_names()}
    return {name: line.lstrip("# ") for name, line in lines.items()}


def packaged_names() -> list[str]:
    """The names of the packaged recipes, in order."""
    return sorted(file.name.removesuffix(".yaml") for file in _PACKAGED.iterdir() if file.name.endswith(".yaml"))


def read_recipe(reference: str) -> list[Layer]:
    """What a recipe sets, and below it what the recipes set that it extends: the lowest first.

    Args:
        reference: A location that ends in .yaml or .yml, or the name of a packaged recipe. In `extends`, which takes
            one or a list, a relative location is relative to the recipe's own folder.

    Raises:
        ConfigError: no such recipe, not YAML, not a mapping of field names, or recipes that extend each other in a
            circle.
    """
    return list(_layers(reference, "", ()))


def merged(layers: Iterable[Layer]) -> dict[str, Any]:
    """The fields of all layers, those of later ones over those of earlier ones.

    Mappings are merged field by field; an empty one clears what was there.
    """
    fields: dict[str, Any] = {}
    for layer in layers:
        fields = _merge(fields, layer.fields)
    return fields


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    fields = dict(below)
    for name, value in above.items():
        both = isinstance(value, dict) and isinstance(fields.get(name), dict)
        fields[name] = _merge(fields[name], value) if both and value else value
    return fields


def _layers(reference: str, folder: str, chain: tuple[_Source, ...]) -> Iterator[Layer]:
    source = _find(reference, folder, chain)
    if source.identity in [earlier.identity for earlier in chain]:
        labels = " -> ".join(link.label for link in (*chain, source))
        raise ConfigError(f"recipe {source.label} extends itself: {labels}")
    fields = _read(source, chain)
    bases = fields.pop(_EXTENDS, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"recipe {source.label}: {_EXTENDS} {bases!r}: expected a recipe or a list of recipes")
    for base in bases:
        yield from _layers(base, os.path.dirname(source.uri), (*chain, source))
    yield Layer(source.label, fields)


def _find(reference: str, folder: str, chain: tuple[_Source, ...]) -> _Source:
    if not reference.endswith(RECIPE_SUFFIXES):
        if reference not in packaged_names():
            raise ConfigError(_no_such_name(reference) + _extended_by(chain))
        return _Source(reference, str(_packaged(reference)))
    uri = storage.join(folder, reference) if folder else reference
    if uri != reference and storage.is_s3(uri):
        uri = f"s3://{posixpath.normpath(uri.removeprefix('s3://'))}"  # S3 itself knows no `..`
    return _Source(uri, uri)


def _packaged(name: str) -> Traversable:
    return _PACKAGED / f"{name}.yaml"


def _no_such_name(reference: str) -> str:
    names = packaged_names()
    close = difflib.get_close_matches(reference, names, n=1)
    hint = f" did you mean {close[0]}?" if close else ""
    return (
        f"unknown recipe {reference!r}:{hint} packaged are {', '.join(names)}; any other is a path that ends in .yaml"
    )


def _extended_by(chain: tuple[_Source, ...]) -> str:
    return f" (extended by {chain[-1].label})" if chain else ""


def _read(source: _Source, chain: tuple[_Source, ...]) -> dict[str, Any]:
    """The content of one recipe, `extends` among its fields."""
    label = source.label
    try:
        text = storage.read_bytes(source.uri)
    except NotFound:
        name = label.rpartition("/")[2].rpartition(".")[0]
        hint = f": did you mean the packaged {name}?" if name in packaged_names() else ""
        raise ConfigError(f"recipe {label}: no such file{hint}{_extended_by(chain)}") from None
    except CIBHashError as error:
        raise ConfigError(f"recipe {label}: {error}{_extended_by(chain)}") from None
    try:
        content = load_yaml(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {label}:{yaml_problem(error)}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"recipe {label}: {type(content).__name__} at the top, expected fields as `name: value`")
    for name in content:
        if not isinstance(name, str):
            raise ConfigError(f"recipe {label}: field {name!r}: expected a name")
    return content


def parse_scalar(text: str) -> Any:
    """A number, a truth value or text, as YAML reads it."""
    try:
        return load_yaml(text)
    except yaml.YAMLError:
        return text
