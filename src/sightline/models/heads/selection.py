"""The part of a network's output that holds its scores."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, cast

from torch import Tensor, nn

from sightline.errors import SightlineError, make_unknown_name_error

# Fields that hold the scores, in the order in which they are preferred. The last three hold the
# features of networks without a head.
SCORE_FIELDS = (
    "logits",
    "out",
    "output",
    "outputs",
    "pred",
    "preds",
    "prediction",
    "predictions",
    "pred_logits",
    "scores",
    "probs",
    "probabilities",
    "class_logits",
    "class_queries_logits",
    "logits_per_image",
    "image_embeds",
    "pooler_output",
    "last_hidden_state",
)


def select_output(output: Any, selector: int | str | None, network_name: str) -> Any:
    """The part of an output that `selector` names, else the part that obviously holds the scores.

    Args:
        output: whatever a network returns: tensors in tuples, lists, dicts, named tuples and
            dataclasses, nested.
        selector: an index, a name, or a path of both such as "heads.sex". None takes the field that
            is named as scores usually are, an only field, or the first value of a tuple.

    Raises SightlineError for a name that is not there, and where no field is obvious.
    """
    path = "" if selector is None else str(selector)
    if selector is not None:
        output = _follow_path(output, path, selector, network_name)
    while not isinstance(output, Tensor) and not is_detection_list(output):
        named_fields = list_output_fields(output)
        if not named_fields:
            return output
        detections = split_detections(named_fields)
        if detections is not None:
            return detections
        name = _choose_field(output, named_fields, path, network_name)
        path = join_path(path, name)
        output = named_fields[name]
    return output


def find_sequence(output: Any, network_name: str) -> tuple[str, Any]:
    """The path and value of the plain tuple or list on the way to the scores; the innermost one.

    The output itself where there is none, and an empty path. Raises SightlineError as
    `select_output` does.
    """
    path = ""
    part = output
    while not isinstance(part, Tensor) and not is_detection_list(part):
        named_fields = list_output_fields(part)
        if is_plain_sequence(part) and not list_output_fields(named_fields.get("0")):
            return path, part
        if not named_fields or split_detections(named_fields) is not None:
            break
        name = _choose_field(part, named_fields, path, network_name)
        path = join_path(path, name)
        part = named_fields[name]
    return "", output


def join_path(path: str, name: str) -> str:
    """«heads.sex»."""
    return f"{path}.{name}" if path else name


def is_plain_sequence(output: Any) -> bool:
    """Whether an output is a tuple or list whose values have no names."""
    return isinstance(output, (tuple, list)) and not hasattr(output, "_fields")


def list_plain_entries(output: Any) -> Sequence[Any]:
    """The values of a plain tuple or list; none of anything else, and of a list of detections."""
    if not is_plain_sequence(output) or is_detection_list(output):
        return ()
    return cast(Sequence[Any], output)


def split_detections(named_fields: Mapping[str, Any]) -> list[dict[str, Tensor]] | None:
    """Detections that lie in one container as a list of one dict for each image; else None.

    Boxes N×M×4 and scores N×M are those of N images, M×4 and M those of one.
    """
    fields = [named_fields.get(name) for name in ("boxes", "scores", "labels")]
    shapes = [tuple(field.shape) for field in fields if isinstance(field, Tensor)]
    if len(shapes) < 3 or len(shapes[1]) not in (1, 2):
        return None
    if shapes != [(*shapes[1], 4), shapes[1], shapes[1]]:
        return None
    scores: Tensor = named_fields["scores"]
    tensors = {
        name: value if scores.ndim == 2 else value[None]
        for name, value in named_fields.items()
        if isinstance(value, Tensor) and value.shape[: scores.ndim] == scores.shape
    }
    count = len(scores) if scores.ndim == 2 else 1
    return [{name: value[i] for name, value in tensors.items()} for i in range(count)]


def is_detection_list(output: Any) -> bool:
    """Whether an output is a list with one dict of boxes and scores for each image."""
    if not isinstance(output, (list, tuple)) or not output:
        return False
    return all(isinstance(item, Mapping) and {"boxes", "scores"} <= set(item) for item in output)


def list_output_fields(output: Any) -> dict[str, Any]:
    """The parts of a container by name or index; empty for anything else."""
    if isinstance(output, Mapping):
        return drop_missing_fields(cast(Mapping[Any, Any], output))
    if is_dataclass(output) and not isinstance(output, type):
        return drop_missing_fields(
            {field.name: getattr(output, field.name) for field in fields(output)}
        )
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        names = cast(Sequence[str], output._fields)  # pyright: ignore[reportAttributeAccessIssue]
        return dict(zip(names, cast(tuple[Any, ...], output), strict=True))
    if isinstance(output, (tuple, list)):
        return {str(index): value for index, value in enumerate(cast(Sequence[Any], output))}
    if isinstance(output, (Tensor, nn.Module, type)):
        return {}
    attributes = getattr(output, "__dict__", {})  # of an object of the caller's own class
    return drop_missing_fields(
        {name: value for name, value in attributes.items() if not name.startswith("_")}
    )


def drop_missing_fields(named_values: Mapping[Any, Any]) -> dict[str, Any]:
    """The values that are not None, by their names as text."""
    return {str(name): value for name, value in named_values.items() if value is not None}


def _follow_path(output: Any, path: str, selector: int | str, network_name: str) -> Any:
    """The part at "heads.sex"; a field whose own name has a dot is found too.

    `selector` is what the caller gave, for messages.
    """
    named_fields = list_output_fields(output)
    if path in named_fields:
        return named_fields[path]
    name, _, rest = path.partition(".")
    if rest and name in named_fields:
        return _follow_path(named_fields[name], rest, selector, network_name)
    if is_plain_sequence(output):
        last = len(named_fields) - 1
        if name.startswith("-") and name[1:].isdigit() and 1 <= int(name[1:]) <= last + 1:
            selected = named_fields[str(last + 1 - int(name[1:]))]
            return _follow_path(selected, rest, selector, network_name) if rest else selected
        raise SightlineError(
            f"output is {selector!r}; {network_name} returns {last + 1} values: "
            "give a number from 0"
        )
    if not named_fields:
        raise SightlineError(
            f"output is {selector!r}; {network_name} returns a single {type(output).__name__}: "
            "leave output= out"
        )
    raise make_unknown_name_error("output", path, list_paths(named_fields))


def list_paths(named_fields: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The paths of all fields, and of those inside of them."""
    paths: list[str] = []
    for name, value in named_fields.items():
        path = join_path(prefix, name)
        paths.append(path)
        if isinstance(value, Mapping):
            paths += list_paths(list_output_fields(value), path)
    return paths


def _choose_field(
    output: Any, named_fields: Mapping[str, Any], path: str, network_name: str
) -> str:
    """The field that holds the scores of what lies at a path."""
    for name in SCORE_FIELDS:
        if name in named_fields:
            return name
    names = list(named_fields)
    if len(names) == 1 or is_plain_sequence(output):
        return names[0]
    paths = ", ".join(join_path(path, name) for name in names)
    raise SightlineError(
        f"{network_name} returns several outputs ({paths}); "
        "say which one holds the scores: output='NAME', or 'NAME.NAME' for a nested one"
    )
