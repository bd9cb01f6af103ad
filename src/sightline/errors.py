"""The error for everything a user can correct: what was given, what is allowed, what is near."""

import difflib
import errno
import re
import unicodedata
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager

MIN_NAME_SIMILARITY = 0.55
# A list of allowed names is only printed when it fits on a line.
MAX_LISTED_NAMES = 12

# What torch, CUDA, numpy, C++ and the loader of libraries say when there is no memory left.
OUT_OF_MEMORY_WORDS = (
    "out of memory",
    "allocate memory",
    "not enough memory",
    "unable to allocate",
    "alloc_failed",
    "bad_alloc",
    "failed to map segment",
    "could not create a primitive",  # oneDNN, which writes programs into memory
    "can't start new thread",
    "can't allocate lock",
    "could not be made c-contiguous",  # numpy
)

# What sounds like it and is no lack of memory: oneDNN's words for shapes that don't fit together,
# and torch's for a tensor without numbers.
OTHER_LACK_WORDS = ("could not create a primitive descriptor", "data is not allocated yet")

MAX_DISPLAY_LENGTH = 200  # characters of a name that are shown
# A longer word, with what is shown of it as a group.
LONG_WORD = re.compile(rf"(\S{{{MAX_DISPLAY_LENGTH - 1}}})\S{{2,}}")

# Characters that end a line, move a terminal's cursor, reverse the text or can't be encoded:
# control, format, surrogate, and the separators of lines and paragraphs.
UNPRINTABLE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# Two of them that spelling needs: the zero-width non-joiner and joiner.
SPELLING_CHARACTERS = frozenset({"\u200c", "\u200d"})


class SightlineError(ValueError):
    """A request that cannot be carried out, with the reason in one line.

    Whatever names are in it, its text is one line: other characters are escaped. Any other
    exception raised by the package is a bug.
    """

    def __str__(self) -> str:
        return escape_control_characters(super().__str__())


class MemoryLackError(SightlineError):
    """A task that the memory is too small for: nothing is wrong with what it was given."""


class OverwrittenInputError(SightlineError):
    """A network overwrote in place what its gradient needs."""


def escape_for_display(text: str, max_length: int = MAX_DISPLAY_LENGTH) -> str:
    """A name from outside as it may be shown: on one line, printable, and not too long.

    Line ends, terminal escape sequences and bytes that are not UTF-8 appear as escapes such as
    `\\n` and `\\x1b`. The result has at most `max_length` characters; a longer one ends in «…».
    """
    # Escapes make a text longer, never shorter.
    escaped = escape_control_characters(text[: max_length + 1])
    if len(escaped) <= max_length:
        return escaped
    return f"{escaped[: max_length - 1]}…"


def escape_text_for_display(text: str) -> str:
    """A text of our own with names from outside in it, on one line: they are shown as names are.

    Characters that are not to be printed are escaped. What has no space in so many characters as
    a name may have is cut, and ends in «…».
    """
    return LONG_WORD.sub(r"\1…", escape_control_characters(text))


def escape_control_characters(text: str) -> str:
    """The text with an escape in place of every character that is not to be printed."""
    if text.isprintable():
        return text
    return "".join(map(_escape_character, text))


def _escape_character(character: str) -> str:
    category = unicodedata.category(character)
    if category not in UNPRINTABLE_CATEGORIES or character in SPELLING_CHARACTERS:
        return character
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"  # a byte that is not UTF-8
    return character.encode("unicode_escape").decode("ascii")


def find_closest_name(requested: str, allowed: Iterable[str]) -> str | None:
    """The closest of the `allowed` names; None where none is close. Case is ignored."""
    name_by_folded = {name.casefold(): name for name in allowed}
    matches = difflib.get_close_matches(
        requested.casefold(), name_by_folded, n=1, cutoff=MIN_NAME_SIMILARITY
    )
    return name_by_folded[matches[0]] if matches else None


def suggest_closest_name(requested: str, allowed: Iterable[str]) -> str:
    """Returns a clause to append to an error message.

    It names those of the `allowed` names that lie inside the requested one (`features.9.squeeze`
    in `features.9`), or the closest one, or lists them when none is close and they are few, or is
    empty. Case is ignored.
    """
    names = list(dict.fromkeys(allowed))
    names_inside = [name for name in names if name.startswith(f"{requested}.")]
    if 0 < len(names_inside) <= MAX_LISTED_NAMES:
        return f"; inside it are {', '.join(names_inside)}"
    closest_name = find_closest_name(requested, names)
    if closest_name is not None:
        return f"; did you mean {closest_name}?"
    if 0 < len(names) <= MAX_LISTED_NAMES:
        return f"; choose from {', '.join(names)}"
    return ""


def make_unknown_name_error(kind: str, requested: object, allowed: Iterable[str]) -> SightlineError:
    """The error for an unknown name: «no layer named 'conv53'; did you mean conv5_3?»."""
    name = str(requested)
    return SightlineError(f"no {kind} named {name!r}{suggest_closest_name(name, allowed)}")


def make_out_of_range_error(
    parameter: str, value: object, low: object, high: object
) -> SightlineError:
    """The error for a number out of its range: «octaves is 40; it must lie between 1 and 12»."""
    return SightlineError(f"{parameter} is {value}; it must lie between {low} and {high}")


def check_number_range(parameter: str, value: float, low: float, high: float) -> None:
    """Raises SightlineError for a number outside the closed range, and for NaN."""
    if not low <= value <= high:
        raise make_out_of_range_error(parameter, value, low, high)


def get_first_error_line(error: BaseException) -> str:
    """The first line of another library's error, to be quoted in one of ours."""
    return str(error).strip().split("\n")[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, of whatever library, means that there is no memory left."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    message = str(error).lower()
    if any(words in message for words in OTHER_LACK_WORDS):
        return False
    return any(words in message for words in OUT_OF_MEMORY_WORDS)


def make_memory_error(task: str, *quantities: str) -> MemoryLackError:
    """The error for a task that the memory is too small for, and what to lower.

    «not enough memory to run saliency; lower size or batch».
    """
    return MemoryLackError(f"not enough memory {task}; lower {' or '.join(quantities)}")


@contextmanager
def convert_memory_errors(task: str, *quantities: str) -> Generator[None, None, None]:
    """Raises the error of `make_memory_error` where there is no memory left in the block."""
    try:
        yield
    except SightlineError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise make_memory_error(task, *quantities) from error


@contextmanager
def guard_backward() -> Generator[None]:
    """Context in which the backward pass of a network may fail, as its own code may in any way.

    Raises SightlineError in place of what it raises, lack of memory excepted.
    """
    try:
        yield
    except SightlineError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise make_backward_error(error) from error


def make_backward_error(error: Exception) -> SightlineError:
    """The error for a network whose backward pass fails, with what to try first."""
    reason = f"{type(error).__name__}: {get_first_error_line(error)[:200]}".removesuffix(": ")
    failure = f"the network's backward pass fails ({reason})"
    others = "methods that only run the network work, such as occlusion and rise"
    if "inplace operation" in str(error):
        hint = "it overwrites what its gradient needs: write y = y * 2 in place of y *= 2"
        return OverwrittenInputError(f"{failure}; {hint}; {others}")
    return SightlineError(f"{failure}; {others}")


def join_words(words: Sequence[str]) -> str:
    """«a», «a and b», «a, b and c»."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"
