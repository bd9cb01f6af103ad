"""The error for everything a user can correct: what was given, what is allowed, what is near."""

import difflib
from collections.abc import Iterable

MIN_NAME_SIMILARITY = 0.55
# A list of allowed names is only printed when it fits on a line.
MAX_LISTED_NAMES = 12


class SightlineError(ValueError):
    """A request that cannot be carried out, with the reason in one line.

    Any other exception raised by the package is a bug.
    """


def suggest_closest_name(requested: str, allowed: Iterable[str]) -> str:
    """Returns a clause to append to an error message.

    It names the closest of the `allowed` names, or lists them when none is close and they are
    few, or is empty. Case is ignored.
    """
    names = list(dict.fromkeys(allowed))
    name_by_folded = {name.casefold(): name for name in names}
    matches = difflib.get_close_matches(
        requested.casefold(), name_by_folded, n=1, cutoff=MIN_NAME_SIMILARITY
    )
    if matches:
        return f"; did you mean {name_by_folded[matches[0]]}?"
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


def get_first_error_line(error: Exception) -> str:
    """The first line of another library's error, to be quoted in one of ours."""
    return str(error).strip().split("\n")[0]
