"""YAML as plain data: mappings whose keys come once, lists, texts and numbers; nothing is constructed beyond that.

Knows nothing of what is written in it.
"""

from typing import Any

import yaml


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


def load_yaml(text: str | bytes) -> Any:
    """The one document of the text.

    Raises:
        YAMLError: it is not YAML, or a key comes twice, of which plain YAML would silently keep the last.
        UnicodeDecodeError: the bytes are no text.
    """
    return yaml.load(text, Loader=_Loader)


def yaml_problem(error: Exception) -> str:
    """One line on what `load_yaml` raised, with the line of the text where it is known."""
    if isinstance(error, yaml.MarkedYAMLError):
        where = f" line {error.problem_mark.line + 1}:" if error.problem_mark else ""
        return f"{where} {error.problem}"
    return f" not YAML: {' '.join(str(error).split())}"
