"""Sightline shows what a vision network has learned.

The public names are listed in `__init__.pyi`; each module is loaded when one of its names is used.
"""

import os
import sys


def _is_command() -> bool:
    """Whether this process is the command `sightline`, or `python -m sightline`."""
    if "--multiprocessing-fork" in sys.orig_argv:  # a process that the command started
        return False
    program = os.path.basename(sys.argv[0]) if sys.argv else ""
    if program in ("sightline", "sightline.exe"):
        return True
    return program == "-m" and "-m sightline " in f"{' '.join(sys.orig_argv)} "


def _end_command(*_: object) -> None:
    """Handles Ctrl-C until the command line does: ends the process with one line."""
    try:
        os.write(2, b"sightline: interrupted\n")
    finally:
        os._exit(130)


if _is_command():
    # What is built in of `signal`: to read the module takes a time in which nothing handles Ctrl-C.
    _signal = __import__("_signal")
    _signal.signal(_signal.SIGINT, _end_command)

import lazy_loader  # noqa: E402 (it takes ten times as long as the others)

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
