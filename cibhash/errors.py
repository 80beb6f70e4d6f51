"""Errors that a person reads: one line each, with the exit code a job ends with.

Knows nothing of where the error is shown. `ValueError` is for wrong arguments of a call; the classes here are for
what the world does wrong. Every message names the value found, the limit or the expected value, and the URI.
"""


class CIBHashError(Exception):
    """Base of all errors of this project; the message is one line for a person."""

    exit_code = 1


class ConfigError(CIBHashError):
    """A configuration or usage that cannot work, known before any work starts."""

    exit_code = 2


class DataError(CIBHashError):
    """Input data that is missing, broken or above the allowed share of bad samples."""

    exit_code = 3


class CorruptShard(DataError):
    """A tar shard that is not what its manifest says, or not a tar at all."""


class BadImage(DataError):
    """One image that cannot or may not be decoded; the message is the reason alone."""


class OversizedImage(BadImage):
    """One image above a limit on bytes or pixels."""


class ManifestMismatch(DataError):
    """Two artefacts that do not belong together, or a file that differs from its digest."""


class StorageError(CIBHashError):
    """Storage that is unavailable, refuses, or is full."""

    exit_code = 4


class NotFound(StorageError):
    """An object or file that does not exist."""


class AlreadyExists(StorageError):
    """A create-only or conditional write lost against another writer."""


class TrainingDiverged(CIBHashError):
    """A loss that is no longer finite."""

    exit_code = 5


class WorkersLost(CIBHashError):
    """Workers that died or hung more often than is answered with a restart."""
