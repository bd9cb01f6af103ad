"""One task after the other, and only so many of one client at a time."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

# Tasks of one client that run or wait. A page sends the next change when it has the last answer, so
# more are several windows, or something else than a page.
MAX_TASKS_PER_CLIENT = 4
# Tasks of all clients that run or wait.
MAX_TASKS = 64


class QueueFullError(Exception):
    """A task that is not accepted: too many wait already."""


class RequestQueue:
    """A queue of tasks that run one at a time, first come first served."""

    def __init__(
        self, max_tasks_per_client: int = MAX_TASKS_PER_CLIENT, max_tasks: int = MAX_TASKS
    ) -> None:
        self.max_tasks_per_client = max_tasks_per_client
        self.max_tasks = max_tasks
        self._turn = asyncio.Lock()
        self._task_counts: Counter[str] = Counter()

    @asynccontextmanager
    async def take_turn(self, client: str) -> AsyncGenerator[None, None]:
        """Waits for its turn, and holds it while the block runs.

        Raises QueueFullError where too many tasks of this client, or of all, run or wait.
        """
        if self._task_counts[client] >= self.max_tasks_per_client:
            raise QueueFullError
        if self._task_counts.total() >= self.max_tasks:
            raise QueueFullError
        self._task_counts[client] += 1
        try:
            async with self._turn:
                yield
        finally:
            self._task_counts[client] -= 1
            if not self._task_counts[client]:
                del self._task_counts[client]
