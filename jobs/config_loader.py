"""From recipes and the command line to a validated config: recipe < later recipe < command line, and nothing else.

Knows nothing of what the jobs do. Every mistake of the person is one `ConfigError` of one line; `--help` prints every
field with its meaning and default (the recipes' where some are given) and exits.
"""

import difflib
import inspect
import itertools
import typing
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NoReturn, TypeVar

import tyro
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from tyro import _errors as parse_errors  # tyro's only structured account of a refused command line; tyro is pinned
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from cibhash.errors import ConfigError
from cluster.config import JobConfig, Section
from cluster.training_config import TrainConfig
from jobs.recipe_file import (
    RECIPE_SUFFIXES,
    Layer,
    merged,
    packaged_names,
    packaged_recipes,
    parse_scalar,
    read_recipe,
)

C = TypeVar("C", bound=JobConfig)
POSITIONAL = {"source": "SOURCE", "query": "QUERY", "datasets": "DATASET", "tar_shards": "SHARDS"}
"""Fields given without a flag, and how the help calls them."""
_HAS_PACKAGED = TrainConfig
"""Whose settings the packaged recipes are: only there, and in what extends it, a recipe may be given by name."""


def load_config(cls: type[C], argv: Sequence[str], prog: str) -> C:
    """The config of one job.

    Args:
        cls: The job's config model.
        argv: Recipes first, each a location that ends in .yaml or .yml or, for training, the name of a packaged one,
            later ones over earlier ones; then `--field value` overrides, nested ones dotted.
        prog: The command as the person typed it, for the help.

    Raises:
        ConfigError: anything that does not fit; one line that names the field, the value and what is expected.
        SystemExit: `--help` was asked for and printed.
    """
    recipes = list(itertools.takewhile(lambda argument: _is_recipe(argument, cls), argv))
    given = _check_recipes(cls, [layer for recipe in recipes for layer in read_recipe(recipe)])
    with parse_errors.on_parse_error(lambda event: _refuse(event, cls)):
        values: Any = tyro.cli(
            cls,
            prog=f"{prog} [RECIPE ...]",
            args=list(argv)[len(recipes) :],
            default=cls.model_construct(**given),
            description=_description(cls, recipes),
            registry=_registry(),
        )
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_first_problem(error, cls)) from None


def _is_recipe(argument: str, cls: type[JobConfig]) -> bool:
    return argument.endswith(RECIPE_SUFFIXES) or (issubclass(cls, _HAS_PACKAGED) and not argument.startswith("-"))


def _description(cls: type[JobConfig], recipes: Sequence[str]) -> str:
    """What the help says before it lists the options."""
    named, listed = "", ""
    if issubclass(cls, _HAS_PACKAGED):
        summaries = packaged_recipes()
        width = max(map(len, summaries))
        named = " or the name of a packaged one"
        listed = "\n\nPackaged recipes:\n" + "\n".join(
            f"  {name:<{width}}  {summary}" for name, summary in summaries.items()
        )
    defaults = f"\n\nDefaults below are those of {', '.join(recipes)}." if recipes else ""
    rule = f"A RECIPE is a file (*.yaml){named}; later ones override earlier ones, options override all."
    return f"{inspect.cleandoc(cls.__doc__ or '')}\n\n{rule}{defaults}{listed}"


def _check_recipes(cls: type[JobConfig], layers: Sequence[Layer]) -> dict[str, Any]:
    """The validated fields of all recipes; a mistake is named with the one recipe that makes it."""
    for layer in layers:
        _check_layer(cls, layer)
    return _check_layer(cls, Layer(", ".join(layer.recipe for layer in layers), merged(layers)))


def _check_layer(cls: type[JobConfig], layer: Layer) -> dict[str, Any]:
    """The validated fields; required ones may still be missing, and fields are not yet held together."""
    try:
        cls.model_validate(layer.fields)
    except ValidationError as error:
        if problem := _first_problem(error, cls, whole=False):
            raise ConfigError(f"recipe {layer.recipe}: {problem}") from None
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {name: TypeAdapter(hints[name]).validate_python(value) for name, value in layer.fields.items()}
    for name, value in layer.fields.items():
        if isinstance(value, bool) and not isinstance(fields[name], bool):
            raise ConfigError(
                f"recipe {layer.recipe}: {name} {str(value).lower()}: expected a value, not true or false"
            )
    return fields


def _first_problem(error: ValidationError, cls: type[JobConfig], *, whole: bool = True) -> str:
    """One line for the most telling of pydantic's errors; empty if there is none.

    Args:
        error: What pydantic found.
        cls: The model, for suggestions.
        whole: The config is complete; otherwise missing fields and rules between fields do not count yet.
    """
    problems = [item for item in error.errors() if whole or (item["type"] != "missing" and item["loc"])]
    problems.sort(key=lambda item: item["type"] not in _UNKNOWN)
    if not problems:
        return ""
    first = problems[0]
    name = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    message = " ".join(first["msg"].removeprefix("Value error, ").split())
    if first["type"] in _UNKNOWN:
        return f"unknown field {name}{_suggestion(name, _field_names(cls))}{more}"
    if first["type"] == "value_error":
        group = name.split(".")[0]
        return f"{group}: {message}{more}" if group and not message.startswith(group) else f"{message}{more}"
    return f"{name} {first['input']!r}: {message[:1].lower()}{message[1:]}{more}"


_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")


def _refuse(event: parse_errors.ParseErrorEvent, cls: type[JobConfig]) -> NoReturn:
    """Turns tyro's account of a refused command line into one line."""
    match event:
        case parse_errors.UnrecognizedArgs(tokens=tokens) if tokens:
            raise ConfigError(_unknown(tokens, cls))
        case parse_errors.MissingArgs(unrecognized_tokens=tokens) if tokens:
            raise ConfigError(_unknown(tokens, cls))
        case parse_errors.MissingArgs(missing_arguments=missing):
            raise ConfigError(f"missing: {', '.join(_flag(item.arg) for item in missing)}")
        case parse_errors.InvalidChoice(argument=argument, value=value, choices=choices):
            raise ConfigError(f"{_flag(argument)} {value}: expected {' or '.join(choices)}")
        case parse_errors.BadValue(argument=argument):
            raise ConfigError(f"{_flag(argument)}: expected {argument.lowered.metavar or 'no value'}")
        case parse_errors.InstantiationFailure(message=message, argument=argument):
            raise ConfigError(_bad_value(message, argument))
    raise ConfigError(f"{type(event).__name__}: see --help")


def _bad_value(message: str, argument: Any) -> str:
    message = " ".join(message.split())
    if argument is None:
        return message
    for start, expected in _NOT_A_NUMBER.items():
        if message.startswith(start):
            return f"{_flag(argument)} {message.rpartition(': ')[2]}: expected {expected}"
    return f"{_flag(argument)}: {message}"


_NOT_A_NUMBER = {"invalid literal for int": "an integer", "could not convert string to float": "a number"}


def _unknown(tokens: Sequence[str], cls: type[JobConfig]) -> str:
    token = next((token for token in tokens if token.startswith("-")), tokens[0]).split("=")[0]
    if token.startswith("-"):
        flags = [f"--{name.replace('_', '-')}" for name in _field_names(cls)]
        return f"unknown option {token}{_suggestion(token, flags)}"
    if token.endswith(RECIPE_SUFFIXES) or (issubclass(cls, _HAS_PACKAGED) and token in packaged_names()):
        return f"unexpected argument {token!r}: a recipe comes first, before the options"
    return f"unexpected argument {token!r}"


def _suggestion(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {close[0]}?" if close else ""


def _field_names(cls: type[Any]) -> list[str]:
    """All fields of a config, nested ones dotted."""
    return list(_walk_names(cls, ""))


def _walk_names(cls: type[Any], prefix: str) -> Iterator[str]:
    for name, hint in typing.get_type_hints(cls).items():
        if name.startswith(("_", "model_")):
            continue
        if inspect.isclass(hint) and (issubclass(hint, Section) or hasattr(hint, "__dataclass_fields__")):
            yield from _walk_names(hint, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _flag(argument: Any) -> str:
    """How a person writes the argument: `--k`, or `SOURCE`."""
    if argument.is_positional():
        return POSITIONAL[argument.field.extern_name]
    return str(argument.lowered.name_or_flags[0])


def _registry() -> ConstructorRegistry:
    registry = ConstructorRegistry()
    registry.struct_rule(_section_rule)
    registry.primitive_rule(_options_rule)
    return registry


def _section_rule(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Config models: parsed to a dict, so that pydantic checks file and command line alike, once, at the end."""
    if not (inspect.isclass(info.type) and issubclass(info.type, Section)):
        return None
    hints = typing.get_type_hints(info.type, include_extras=True)

    def as_dict(**values: object) -> dict[str, object]:
        return values

    as_dict.__doc__ = info.type.__doc__
    shared = list(JobConfig.model_fields) if issubclass(info.type, JobConfig) else []
    fields = info.type.model_fields
    ordered = [*(name for name in fields if name not in shared), *reversed(shared)]
    return StructConstructorSpec(
        instantiate=as_dict,
        fields=tuple(_field_spec(name, fields[name], hints[name], info.default) for name in ordered),
    )


_NUMBERS = PrimitiveConstructorSpec[Any](
    nargs="*",
    metavar="N[,N...]",
    instance_from_str=",".join,
    is_instance=lambda value: isinstance(value, tuple),
    str_from_instance=lambda value: [",".join(map(str, value))],
)
"""Several numbers, `16,32,64` or `16 32 64`: passed on as text, pydantic splits and checks."""


def _field_spec(name: str, field: FieldInfo, hint: Any, instance: object) -> StructFieldSpec:
    default = tyro.MISSING if field.is_required() else field.get_default(call_default_factory=True)
    default = getattr(instance, name, default)
    if getattr(hint, "__origin__", None) in (tuple[int, ...], tuple[float, ...]):
        hint = Annotated[hint, _NUMBERS]
    if type(None) in typing.get_args(hint):
        hint = Annotated[hint, tyro.conf.arg(metavar="INT")]
    if default is None or default in ("", ()):
        hint = Annotated[hint, tyro.conf.arg(help_behavior_hint="")]
    if name in POSITIONAL:
        hint = Annotated[hint, tyro.conf.Positional, tyro.conf.arg(metavar=POSITIONAL[name])]
    return StructFieldSpec(name=name, type=hint, default=default, helptext=" ".join((field.description or "").split()))


def _options_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Further options: `pad_type=same depth=3`."""
    if info.type_origin is not typing.get_origin(typing.Mapping[str, str]):
        return None
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME=VALUE",
        instance_from_str=lambda items: dict(_name_value(item) for item in items),
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [f"{name}={item}" for name, item in value.items()],
    )


def _name_value(item: str) -> tuple[str, Any]:
    name, separator, value = item.partition("=")
    if not separator:
        raise ValueError(f"{item!r}: expected NAME=VALUE")
    return name, parse_scalar(value)
