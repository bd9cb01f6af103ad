"""The entry point of the command line, and how it ends: with one line where something went wrong.

Until `main` runs only light modules are imported, so that Ctrl-C is handled almost from the start.
"""

import io
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

from sightline.app.machine.process import ignore_decoder_warnings, remove_unfinished_files
from sightline.errors import (
    SightlineError,
    escape_for_display,
    is_out_of_memory,
    make_memory_error,
)

# An error message may quote what was given. So many characters of it are shown.
MAX_MESSAGE_LENGTH = 1000

# A process that a signal ends has this exit status and the signal's number, 2 for Ctrl-C.
SIGNAL_STATUS = 128
INTERRUPTED = SIGNAL_STATUS + 2

# What ends a process politely: `kill`, a job's time limit, a terminal that is closed.
ENDING_SIGNALS = ("SIGTERM", "SIGHUP")

# Characters of a line below which help can't be laid out.
MIN_COLUMNS = 40

# A progress bar hides the terminal's cursor.
SHOW_CURSOR = "\x1b[?25h"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns the exit status.

    It is 0 for done, 1 for refused with one line on the error stream, 2 for a command that can't
    be understood, and 130 for interrupted. Raises BrokenPipeError where nobody reads its output.
    """
    # Large tensors in huge pages, which torch looks up when it starts: a large style step takes a
    # tenth less time and a sixth less memory.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        from sightline.app.cli.application import run_command

        return run_command(words)
    except SightlineError as error:
        from sightline.app.cli.options import UsageError

        print_message(str(error))
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print_message("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:
        reason = describe_lack(error, words)
        if not reason:
            raise  # a bug, whose traceback helps to find it
        print_message(reason)
        return 1


def describe_lack(error: Exception, words: Sequence[str]) -> str:
    """What the machine lacks, such as memory or a permission; empty for other errors."""
    if is_out_of_memory(error):
        command = next((word for word in words if not word.startswith("-")), "this command")
        lacking = make_memory_error(
            f"for {command}", "--size", "--batch", "the size of the images that are read"
        )
        return str(lacking)
    if not isinstance(error, OSError):
        return ""
    reason = error.strerror or str(error) or type(error).__name__
    if error.filename is None:
        return f"reading or writing failed ({reason})"
    return f"{escape_for_display(str(error.filename))}: {reason}"


def run_script() -> None:
    """The installed command. Its output may go to a program such as `head` that stops reading."""
    signal.signal(signal.SIGINT, end_at_once)
    handle_ending_signals()
    occupy_closed_streams()
    escape_unencodable_characters()
    widen_narrow_terminal()
    warnings.showwarning = print_warning
    ignore_decoder_warnings()
    try:
        require_working_folder()
        status = main()
        if sys.stdout is not None:  # None where the caller closed it
            sys.stdout.flush()
    except BrokenPipeError:
        discard_output()
        status = 0
    except OSError as error:
        discard_output()
        print_message(f"can't write the output ({error.strerror or error})")
        status = 1
    sys.exit(status)


def occupy_closed_streams() -> None:
    """Opens nothing in place of the streams that the caller closed.

    The next file that is opened would get their numbers, and what libraries write there.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number


def escape_unencodable_characters() -> None:
    """Prints escapes for what the output's encoding lacks, such as × where it is ASCII."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def widen_narrow_terminal() -> None:
    """Lets lines be longer than a terminal that says it has hardly any columns, or none."""
    claimed = os.environ.get("COLUMNS", "")
    is_zero = claimed.isdecimal() and int(claimed) == 0
    if is_zero or shutil.get_terminal_size().columns < MIN_COLUMNS:
        os.environ["COLUMNS"] = str(MIN_COLUMNS)


def require_working_folder() -> None:
    """Ends the process with one line where its working folder was removed.

    Libraries look for their files by it.
    """
    try:
        os.getcwd()
    except OSError as error:
        print_message(f"the working folder can't be read ({error.strerror}); go to another one")
        sys.exit(1)


def handle_ending_signals() -> None:
    """Ends as Ctrl-C does when asked to end. A signal that the caller ignores, as nohup does, stays
    ignored.
    """
    for name in ENDING_SIGNALS:
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, end_at_once)


def end_at_once(number: int, _frame: FrameType | None) -> None:
    """Handles a signal such as Ctrl-C where there is nothing to keep: ends the process with a line.

    A KeyboardInterrupt would end in the middle of whatever runs. Some libraries take it for a
    failed import, and C++ code aborts.
    """
    remove_unfinished_files()
    processes = sys.modules.get("multiprocessing")
    if processes is not None:
        for process in processes.active_children():
            process.terminate()
    with suppress(OSError):
        if sys.stderr is not None and sys.stderr.isatty():
            sys.stderr.write(SHOW_CURSOR)
    print_message("interrupted" if number == signal.SIGINT else f"ended by signal {number}")
    with suppress(OSError, AttributeError):  # AttributeError: there is no output
        sys.stdout.flush()
    os._exit(SIGNAL_STATUS + number)


def discard_output() -> None:
    """Lets what is still to be printed go nowhere, so that Python does not fail to at its end."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_message(message: str) -> None:
    """Prints one line on the error stream, where there is one."""
    if sys.stderr is None:
        return
    with suppress(OSError):
        line = escape_for_display(message, MAX_MESSAGE_LENGTH)
        print(f"sightline: {line}", file=sys.stderr)


def print_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Shows a warning as one line, without the source line that raised it."""
    print_message(f"note: {message}")
