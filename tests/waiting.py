"""Waiting for an event in a test: as long as it takes, within a limit that only a hang reaches."""

import time
from collections.abc import Callable

TIMEOUT_S = 900.0
"""Seconds after which whatever a test waits for counts as hanging, however busy the machine is.

pytest's own timeout (pyproject.toml) is longer, so that the message of the wait that hangs is the one that is shown.
"""


def wait_for(condition: Callable[[], object], explain: Callable[[], object] = lambda: "waited in vain") -> None:
    """Return as soon as the condition is true.

    Args:
        condition: called again and again.
        explain: the message of the failure; called when the limit is reached.

    Raises:
        AssertionError: the condition was not true within `TIMEOUT_S`.
    """
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end, explain()
        time.sleep(0.02)
