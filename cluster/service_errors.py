"""What a client of the search service raises, beside the errors of `cibhash.errors`.

Knows nothing of requests.
"""

from cibhash.errors import CIBHashError, ConfigError


class ServiceUnavailable(CIBHashError):
    """The service does not answer, or not with all that was asked for."""

    exit_code = 4


class RequestRejected(ConfigError):
    """The service refuses the request itself: a field, a size, or the token."""
