"""Classes by number, by name, or by a part of the name."""

import operator
import re
from collections.abc import Sequence
from typing import SupportsIndex, cast

from sightline.errors import SightlineError, escape_for_display, make_unknown_name_error

# A class by number or name, or one of these for each image.
ClassChoice = int | str | tuple[int | str, ...]

MAX_LISTED_CLASSES = 12


def find_label_index(labels: Sequence[str], label: int | str, network_name: str) -> int:
    """Index of a class by its number, its name, or a part of the name that no other class has.

    The exact spelling counts first, then a number, then the name in any case, then a part of it.
    Raises SightlineError with the closest names, with the classes that a part of a name belongs
    to, and for a name that several classes have.
    """
    if not isinstance(label, str):
        return _check_class_number(labels, _require_number(label), network_name)
    exact = [i for i, name in enumerate(labels) if name == label]
    if exact:
        return _require_one_class(label, exact, network_name)
    if re.fullmatch("-?[0-9]{1,9}", label):
        return _check_class_number(labels, int(label), network_name)
    requested = label.casefold()
    names = [name.casefold() for name in labels]
    same_in_any_case = [i for i, name in enumerate(names) if name == requested]
    if same_in_any_case:
        return _require_one_class(label, same_in_any_case, network_name)
    partial = [i for i, name in enumerate(names) if requested in name]
    if len(partial) == 1:
        return partial[0]
    if partial:
        raise make_ambiguous_label_error(labels, label, partial)
    raise make_unknown_name_error("label", label, labels)


def check_class_count(labels: Sequence[int | str], image_count: int) -> None:
    """Raises SightlineError where there is not one class for each image."""
    if len(labels) != image_count:
        images = "1 image" if image_count == 1 else f"{image_count} images"
        classes = "1 class" if len(labels) == 1 else f"{len(labels)} classes"
        raise SightlineError(f"label has {classes} for {images}; give one, or one for each image")


def make_ambiguous_label_error(
    labels: Sequence[str], label: str, indices: Sequence[int]
) -> SightlineError:
    """The error for a part of several names, which lists them with their numbers."""
    listed = [
        f"{escape_for_display(labels[index], 60)} ({index})"
        for index in indices[:MAX_LISTED_CLASSES]
    ]
    unlisted = len(indices) - len(listed)
    ending = f" and {unlisted} more" if unlisted else ""
    return SightlineError(
        f"no label named {label!r}; choose from {', '.join(listed)}{ending}, of which it is a part"
    )


def _require_one_class(label: str, indices: Sequence[int], network_name: str) -> int:
    """The only index; raises SightlineError where several classes have the name."""
    if len(indices) == 1:
        return indices[0]
    numbers = " and ".join(str(index) for index in indices)
    raise SightlineError(
        f"label is {label!r}; {network_name} has {len(indices)} classes of that name: "
        f"give the number, {numbers}"
    )


def _require_number(label: object) -> int:
    """A whole number, also one of numpy or torch. Raises SightlineError for anything else."""
    try:
        return operator.index(cast(SupportsIndex, label))
    except TypeError:
        raise SightlineError(
            f"label is {label!r:.60}; give the number or the name of a class"
        ) from None


def _check_class_number(labels: Sequence[str], number: int, network_name: str) -> int:
    if not 0 <= number < len(labels):
        raise SightlineError(
            f"label is {number}; {network_name} has classes 0 to {len(labels) - 1}"
        )
    return number
