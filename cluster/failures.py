"""Errors of this project as text, for places that would lose their class or bury their message in a traceback.

Knows nothing of who fails.
"""

from cibhash import errors
from cibhash.errors import CIBHashError


def described(error: CIBHashError) -> str:
    """`class message`, with the class as `cibhash.errors` has it."""
    public = next(cls for cls in type(error).__mro__ if cls.__module__ == errors.__name__)
    return f"{public.__name__} {error}"


def raise_failure(failure: str) -> None:
    """Raises the error that `described` made the text of; does nothing if it is empty."""
    if failure:
        name, _, message = failure.partition(" ")
        raise getattr(errors, name)(message)
