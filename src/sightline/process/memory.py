"""How much freed memory the process keeps, so that the next pass need not ask for it again.

A network frees every feature map a moment after it was made. By default the C library of Linux
gives large blocks back to the system at once, which clears each page anew when it is next touched:
a tenth to a third of the time of a pass on the CPU.
"""

import ctypes
import logging
import os
import sys
from functools import cache

logger = logging.getLogger(__name__)

# Blocks of at most so many bytes are kept: as far as glibc itself goes, which it does in small
# steps and only after blocks of that size were freed (mallopt(3), M_MMAP_THRESHOLD).
LARGEST_KEPT_BLOCK = 32 * 2**20

# So many bytes at most are kept at the end of a heap. Each of several threads at a time may have
# one of its own, which glibc lets grow to 64 MiB.
MOST_KEPT_BYTES = 128 * 2**20

# Numbers of the settings in glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3

# Who sets one of these has chosen.
USER_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


@cache
def keep_freed_memory() -> bool:
    """Has the process keep up to 128 MiB that it freed; returns whether it does from now on.

    Where several threads run networks at a time, each keeps up to 64 MiB more. Nothing changes
    without glibc, where the user has set its allocator by the environment, and with
    SIGHTLINE_PORTABLE=1.
    """
    is_chosen = any(os.environ.get(name) for name in USER_SETTINGS)
    if not sys.platform.startswith("linux") or is_chosen:
        return False
    if os.environ.get("SIGHTLINE_PORTABLE") == "1":
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    # Setting one ends the adaptation of both.
    is_kept = bool(
        set_option(M_MMAP_THRESHOLD, LARGEST_KEPT_BLOCK)
        and set_option(M_TRIM_THRESHOLD, MOST_KEPT_BYTES)
    )
    logger.debug("freed memory is %s", "kept" if is_kept else "given back as ever")
    return is_kept
