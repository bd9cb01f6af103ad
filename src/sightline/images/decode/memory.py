"""How much memory the threads that decode pictures may take together."""

import threading
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager

from sightline.process.locks import register_for_forks

# So many bytes may lie decoded at once: fourteen photographs of 12 megapixels.
DECODING_BYTES = 2_000_000_000


class MemoryBudget:
    """Bytes that threads share. A thread waits until those that it asks for are free.

    Who waited first is served first, so that a large picture gets its turn among small ones.

    In a forked process all of them are free: the threads that hold some do not exist there.
    """

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.free_bytes = total_bytes
        self._condition = threading.Condition()
        self._waiting: deque[object] = deque()
        register_for_forks(self)

    def reset_after_fork(self) -> None:
        """Frees what the threads of the parent hold."""
        self.free_bytes = self.total_bytes
        self._condition = threading.Condition()
        self._waiting = deque()

    @contextmanager
    def reserve_bytes(self, byte_count: int) -> Generator[None, None, None]:
        """Holds bytes while the block runs. What is more than the whole budget runs alone.

        A block must not reserve bytes again: two threads might wait for each other.
        """
        granted = min(byte_count, self.total_bytes)
        condition = self._condition
        self._take_bytes(granted)
        try:
            yield
        finally:
            # After a fork within the block they were given back already.
            if condition is self._condition:
                with condition:
                    self.free_bytes += granted
                    condition.notify_all()

    def _take_bytes(self, byte_count: int) -> None:
        """Waits for its turn, and until so many bytes are free."""
        turn = object()
        with self._condition:
            self._waiting.append(turn)
            try:
                self._condition.wait_for(
                    lambda: self._waiting[0] is turn and self.free_bytes >= byte_count
                )
                self.free_bytes -= byte_count
            finally:
                self._waiting.remove(turn)
                self._condition.notify_all()  # there may be enough for the next one, too


DECODING_BUDGET = MemoryBudget(DECODING_BYTES)
