"""Whether the Hugging Face hub can be reached, so that a download is refused in seconds.

Its client retries each of several requests for many seconds before it gives up.
"""

import threading
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from http.client import HTTPException

# The hub answers in well under a second.
HUB_TIMEOUT = 3.0


@contextmanager
def use_reachable_hub() -> Generator[None, None, None]:
    """While the block runs, the hub's client reads only its cache if the hub can't be reached."""
    from huggingface_hub import constants

    was_offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = was_offline or not can_reach(constants.ENDPOINT, HUB_TIMEOUT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was_offline


def can_reach(url: str, timeout: float) -> bool:
    """Whether a server answers in `timeout` seconds, with the look-up of its name."""
    answers: list[bool] = []

    def ask_server() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=timeout):
                answers.append(True)
        except urllib.error.HTTPError:
            answers.append(True)  # it refuses, so it is there
        except (OSError, ValueError, HTTPException):  # ValueError: not a URL
            answers.append(False)

    # The system's look-up of names has no timeout; a thread need not be waited for.
    thread = threading.Thread(target=ask_server, daemon=True)
    thread.start()
    thread.join(timeout)
    return any(answers)
