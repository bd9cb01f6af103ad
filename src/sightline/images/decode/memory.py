"""How much memory the threads that decode pictures may take together."""

import threading
from collections.abc import Generator
from contextlib import contextmanager

# So many bytes may lie decoded at once: fourteen photographs of 12 megapixels.
DECODING_BYTES = 2_000_000_000


class MemoryBudget:
    """Bytes that threads share. A thread waits until those that it asks for are free."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.free_bytes = total_bytes
        self._condition = threading.Condition()

    @contextmanager
    def reserve_bytes(self, byte_count: int) -> Generator[None, None, None]:
        """Holds bytes while the block runs. What is more than the whole budget runs alone.

        A block must not reserve bytes again: two threads might wait for each other.
        """
        granted = min(byte_count, self.total_bytes)
        with self._condition:
            self._condition.wait_for(lambda: self.free_bytes >= granted)
            self.free_bytes -= granted
        try:
            yield
        finally:
            with self._condition:
                self.free_bytes += granted
                self._condition.notify_all()


DECODING_BUDGET = MemoryBudget(DECODING_BYTES)
