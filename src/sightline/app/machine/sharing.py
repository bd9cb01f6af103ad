"""How several commands at once share a machine: settings that torch reads when it is imported.

The threads of an operation wait for each other at its end. By default they keep their processors
busy while they wait, which takes them from other commands. On two processors passive waiting made
one, two and four commands at once a little faster (`bench/together.py`); alone it costs nothing.

Nothing here imports torch.
"""

import os
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path

WAIT_POLICY = "OMP_WAIT_POLICY"
THREADS = "OMP_NUM_THREADS"
SHARING_VARIABLES = (WAIT_POLICY, THREADS)

# Each of these is a user's own choice of threads.
THREAD_CHOICES = (THREADS, "MKL_NUM_THREADS", "OMP_THREAD_LIMIT")

# «quota period» in microseconds, or «max period».
CGROUP_QUOTA_FILE = Path("/sys/fs/cgroup/cpu.max")


def share_machine(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets how threads wait, and how many there are, where the user has not.

    To be called before torch is imported.
    """
    environment.setdefault(WAIT_POLICY, "PASSIVE")
    if any(name in environment for name in THREAD_CHOICES):
        return
    # torch counts the machine's processors, also where a container may use only some of them.
    available = count_available_processors()
    if available < (os.cpu_count() or 1):
        environment[THREADS] = str(available)


def count_threads(environment: Mapping[str, str] = os.environ) -> int:
    """The threads that an operation of torch may have: as many as the user chose, or processors."""
    choices = [environment.get(name, "") for name in THREAD_CHOICES]
    counts = [int(choice) for choice in choices if choice.isdecimal()]
    return min(counts, default=count_available_processors())


def count_available_processors(quota_file: Path = CGROUP_QUOTA_FILE) -> int:
    """The processors that this process may use: by its affinity and its container's quota."""
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # Linux
        count = min(count, len(os.sched_getaffinity(0)))
    with suppress(OSError, ValueError):  # no such file, or «max» in place of a number
        quota, period = quota_file.read_text(encoding="ascii").split()
        count = min(count, max(1, round(int(quota) / int(period))))
    return count
