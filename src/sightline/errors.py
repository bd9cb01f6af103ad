"""One error for everything a user can mend: what was given, what is allowed, what is near."""

import difflib
from collections.abc import Iterable


class SightlineError(ValueError):
    """A request that can't be carried out, in one line that says why. Anything else that is raised is a bug."""


def suggest_closest_name(requested: str, allowed: Iterable[str]) -> str:
    """A clause that names the closest of `allowed`, or lists them if they are few, or nothing."""
    names = list(dict.fromkeys(allowed))
    folded = {name.casefold(): name for name in names}
    close = difflib.get_close_matches(requested.casefold(), folded, n=1, cutoff=0.55)
    if close:
        return f"; did you mean {folded[close[0]]}?"
    return f"; choose from {', '.join(names)}" if 0 < len(names) <= 12 else ""


def make_unknown_name_error(kind: str, requested: object, allowed: Iterable[str]) -> SightlineError:
    """The error for a name that does not exist: «no layer named 'conv53'; did you mean conv5_3?»."""
    return SightlineError(
        f"no {kind} named {str(requested)!r}{suggest_closest_name(str(requested), allowed)}"
    )


def make_out_of_range_error(
    parameter: str, value: object, low: object, high: object
) -> SightlineError:
    """The error for a number out of its range: «octaves is 40; it must lie between 1 and 12»."""
    return SightlineError(f"{parameter} is {value}; it must lie between {low} and {high}")


def get_first_error_line(error: Exception) -> str:
    """The first line of another library's error, to be told within ours."""
    return str(error).strip().split("\n")[0]
