"""Reads a recipe: a YAML mapping of config fields.

Knows nothing of the fields. Only plain data is built; a key that comes twice is refused, since YAML would silently
keep the last.
"""

from typing import Any

import yaml

from cibhash.errors import ConfigError, NotFound
from cluster import storage


class _Loader(yaml.SafeLoader):
    """Plain data only, keys once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"field {key_node.value!r} comes twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def read_recipe(uri: str) -> dict[str, Any]:
    """The fields that a recipe sets.

    Raises:
        ConfigError: no such file, not YAML, or not a mapping of field names.
    """
    try:
        text = storage.read_bytes(uri)
    except NotFound:
        raise ConfigError(f"recipe {uri}: no such file") from None
    try:
        content = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        where = f" line {error.problem_mark.line + 1}:" if error.problem_mark else ""
        raise ConfigError(f"recipe {uri}:{where} {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {uri}: not YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"recipe {uri}: {type(content).__name__} at the top, expected fields as `name: value`")
    for name in content:
        if not isinstance(name, str):
            raise ConfigError(f"recipe {uri}: field {name!r}: expected a name")
    return content


def parse_scalar(text: str) -> Any:
    """A number, a truth value or text, as YAML reads it."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        return text
