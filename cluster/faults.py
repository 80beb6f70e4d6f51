"""Named points at which a test may have the process die or pause.

Knows nothing of what happens there. `CIBHASH_FAULT=checkpoint.before_index:exit` (or `:sleep=5`) acts only where
`CIBHASH_ALLOW_FAULTS=1` is set too; the one exception to the rule that no setting comes from the environment.
"""

import os
import time

from cibhash.errors import ConfigError

EXIT_CODE = 86


def fault_point(name: str) -> None:
    """Does what the environment asks for at this point, which is nothing outside of tests.

    Raises:
        ConfigError: a fault is set without the flag that allows it, or is not one.
    """
    setting = os.environ.get("CIBHASH_FAULT", "")
    if not setting:
        return
    if os.environ.get("CIBHASH_ALLOW_FAULTS") != "1":
        raise ConfigError(f"CIBHASH_FAULT={setting} is for tests: it needs CIBHASH_ALLOW_FAULTS=1")
    point, _, action = setting.partition(":")
    if point != name:
        return
    if action == "exit":
        os._exit(EXIT_CODE)
    try:
        seconds = float(action.removeprefix("sleep=")) if action.startswith("sleep=") else -1.0
        time.sleep(seconds)
    except (ValueError, OverflowError):
        raise ConfigError(f"CIBHASH_FAULT={setting}: expected POINT:exit or POINT:sleep=SECONDS") from None
