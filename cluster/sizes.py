"""Sizes as people write them.

Knows nothing of what has the size.
"""

import re

_UNITS = {"": 1, "B": 1}
_UNITS.update({f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)})
_UNITS.update({f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", 1)})
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)")


def parse_size(text: str) -> int:
    """Bytes of a size as people write it: `256MB` (millions), `1GiB` (powers of 1024), or plain digits.

    Raises:
        ValueError: it cannot be read, or is no whole positive number of bytes.
    """
    match = _SIZE.fullmatch(text.strip())
    units = {name.lower(): factor for name, factor in _UNITS.items()}
    if match is None or match.group(2).lower() not in units:
        raise ValueError(f"{text!r}: expected a size as in 256MB or 1GiB")
    size = int(float(match.group(1)) * units[match.group(2).lower()])
    if size < 1:
        raise ValueError(f"{text!r}: expected a size above 0")
    return size
