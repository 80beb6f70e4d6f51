"""Bearer tokens of the search service, read from a file by the service and its clients alike."""

from pathlib import Path

from cibhash.errors import ConfigError


def read_tokens(token_file: str) -> tuple[str, ...]:
    """The tokens in a file, one per line; empty lines are skipped.

    Raises:
        ConfigError: the file cannot be read or holds no token.
    """
    try:
        lines = Path(token_file).read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"token_file {token_file}: {getattr(error, 'strerror', '') or 'not ASCII text'}") from None
    tokens = tuple(line.strip() for line in lines if line.strip())
    if not tokens:
        raise ConfigError(f"token_file {token_file}: holds no token, expected one per line")
    return tokens
