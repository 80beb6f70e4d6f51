"""Errors as text and back: class, exit code and message survive."""

import inspect

import pytest

from cibhash import errors
from cibhash.errors import CIBHashError, ConfigError, StorageError, TrainingDiverged
from cibhash.loop import NotFiniteLoss
from cluster.failures import described, raise_failure

_CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, CIBHashError)]
_MESSAGES = ("plain", "", " two  spaces, 'quotes': s3://bucket/a b", "ConfigError of another kind", "ü\nline")


@pytest.mark.parametrize("cls", _CLASSES)
def test_every_error_comes_back_as_it_was(cls: type[CIBHashError]) -> None:
    for message in _MESSAGES:
        with pytest.raises(CIBHashError) as caught:
            raise_failure(described(cls(message)))
        assert type(caught.value) is cls
        assert str(caught.value) == message
        assert caught.value.exit_code == cls.exit_code


def test_a_class_of_another_module_comes_back_as_the_public_one_it_is() -> None:
    class _Conflict(StorageError):
        pass

    for error, public in ((NotFiniteLoss("nan", 3, 4), TrainingDiverged), (_Conflict("409"), StorageError)):
        with pytest.raises(CIBHashError) as caught:
            raise_failure(described(error))
        assert type(caught.value) is public
        assert str(caught.value) == str(error)


def test_no_failure_raises_nothing() -> None:
    raise_failure("")
    assert described(ConfigError("")) != ""
