"""The compiled library: declared as its header says, and refused in one line where it is stale or broken."""

import _ctypes
import ctypes
import logging
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from cibhash.native import library as module
from cibhash.native.library import ABI, Level, library, load

_FOLDER = Path(module.__file__).parent
_HEADER = (_FOLDER / "library.h").read_text()
compiled = pytest.mark.skipif(library() is None, reason="no compiled library")


@pytest.fixture
def forgotten() -> Iterator[None]:
    """The library is looked for anew, in the test and after it."""
    module._found.cache_clear()
    yield
    module._found.cache_clear()


def test_python_and_c_agree_on_version_and_functions() -> None:
    assert re.findall(r"#define CIBHASH_ABI (\d+)", _HEADER) == [str(ABI)]
    functions = dict(re.findall(r"^int32_t (cibhash_\w+)\(([^)]*)\);", _HEADER, re.MULTILINE))
    assert functions.pop("cibhash_abi") == "void"
    kinds = {"int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64}
    assert {
        name: tuple(
            ctypes.c_void_p if "*" in argument else kinds[argument.split()[0]]
            for argument in arguments.split(",")
            if argument != "void"
        )
        for name, arguments in functions.items()
    } == module._ARGUMENTS
    levels = re.search(r"enum \{ (PORTABLE .*) \};", _HEADER)
    assert levels
    assert levels[1] == ", ".join(f"{level.name} = {level}" for level in Level)


def test_every_source_is_compiled() -> None:
    settings = tomllib.loads((_FOLDER.parents[1] / "pyproject.toml").read_text())
    (extension,) = settings["tool"]["setuptools"]["ext-modules"]
    for field, pattern in (("sources", "*.c"), ("depends", "*.h")):
        assert sorted(extension[field]) == sorted(f"cibhash/native/{path.name}" for path in _FOLDER.glob(pattern))


@compiled
def test_a_stale_library_is_refused(
    forgotten: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "ABI", ABI + 1)
    assert library() is None
    assert library() is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"has version {ABI}, this package needs {ABI + 1}: compile it again" in record.getMessage()


@pytest.mark.parametrize("content", [None, b"", b"not a library"])
def test_a_broken_library_is_refused(
    content: bytes | None,
    tmp_path: Path,
    forgotten: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "broken.so"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("CIBHASH_NATIVE", str(path))
    assert library() is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "cannot be loaded" in record.getMessage()
    assert str(path) in record.getMessage()
    assert "\n" not in record.getMessage()


def test_a_library_of_something_else_is_refused() -> None:
    with pytest.raises(AttributeError, match="cibhash_abi"):
        load(Path(_ctypes.__file__))


@pytest.mark.parametrize(("setting", "reason"), [("0", "switched off"), ("", "not compiled")])
def test_no_library_is_said_once(
    setting: str,
    reason: str,
    tmp_path: Path,
    forgotten: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("CIBHASH_NATIVE", setting)
    monkeypatch.setattr(module, "_FOLDER", tmp_path)
    assert library() is None
    assert library() is None
    (record,) = caplog.records
    assert reason in record.getMessage()
