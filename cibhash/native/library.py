"""The compiled library: finds it, refuses what is stale or broken, and declares its functions for ctypes.

Knows nothing of what they compute. The environment variable CIBHASH_NATIVE decides which library is used, never what
comes out: `0` for none, a path for that one (say, compiled with sanitizers), unset for the one beside this file.
"""

import ctypes
import enum
import functools
import logging
import os
import threading
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

ABI = 2
"""Version of the exported functions, CIBHASH_ABI in library.h."""
_FOLDER = Path(__file__).parent
_ADDRESS, _INT32, _INT64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
_PAIR = (_ADDRESS, _INT64, _ADDRESS, _INT64, _INT32)
_ARGUMENTS = {
    "cibhash_level": (),
    "cibhash_resize_columns": (_ADDRESS, _INT32, _INT32, _INT32, _ADDRESS, _INT32),
    "cibhash_resize_rows": (_ADDRESS, _INT32, _INT32, _INT32, _ADDRESS, _INT32),
    "cibhash_planes": (_ADDRESS, _INT64, _ADDRESS, _INT32),
    "cibhash_hamming_search": (*_PAIR, _INT64, _ADDRESS, _ADDRESS, _INT32),
    "cibhash_hamming_count": (*_PAIR, _INT32, _ADDRESS, _INT32),
    "cibhash_hamming_fill": (*_PAIR, _INT32, _ADDRESS, _ADDRESS, _ADDRESS, _INT32),
    "cibhash_hamming_histogram": (*_PAIR, _ADDRESS, _ADDRESS, _INT32, _ADDRESS, _ADDRESS, _INT32),
}
"""As in library.h. All of them return an int32."""
_log = logging.getLogger(__name__)
_loading = threading.Lock()


class Level(enum.IntEnum):
    """What a CPU has; a function uses at most what its caller allows, and never more than there is."""

    PORTABLE = 0
    AVX2 = 1
    AVX512 = 2
    """With VPOPCNTDQ."""


BEST = max(Level)


def library() -> ctypes.CDLL | None:
    """The loaded library, or None; the log says once why there is none.

    Calls release the interpreter's lock. Arrays go by address: whoever calls answers for their size, type and
    contiguity, and keeps them alive.
    """
    with _loading:
        return _found()


@functools.cache
def _found() -> ctypes.CDLL | None:
    setting = os.environ.get("CIBHASH_NATIVE", "")
    if setting == "0":
        _log.info("native code is switched off: CIBHASH_NATIVE=0")
        return None
    beside = (_FOLDER / f"_library{suffix}" for suffix in EXTENSION_SUFFIXES)
    path = Path(setting) if setting else next((path for path in beside if path.exists()), None)
    if path is None:
        _log.info("native code is not compiled: no _library%s in %s", EXTENSION_SUFFIXES[0], _FOLDER)
        return None
    try:
        return load(path)
    except (OSError, AttributeError) as error:
        _log.warning("native code cannot be loaded: %s", error)
        return None


def load(path: Path) -> ctypes.CDLL:
    """Loads a library and declares its functions.

    Raises:
        OSError: it is not a library, or of another version.
        AttributeError: it lacks a function.
    """
    loaded = ctypes.CDLL(str(path))
    if (abi := loaded.cibhash_abi()) != ABI:
        raise OSError(f"{path} has version {abi}, this package needs {ABI}: compile it again")
    for name, arguments in _ARGUMENTS.items():
        function = getattr(loaded, name)
        function.argtypes = arguments
        function.restype = _INT32
    return loaded
