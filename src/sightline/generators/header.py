"""The header of a style network's file: what the file says it is, checked before it is believed."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from sightline.errors import SightlineError
from sightline.generators.architectures.style import NormKind

FIXED_STYLE_KIND = "sightline-stylizer"
ANY_STYLE_KIND = "sightline-any-style"

# The key of a safetensors file's metadata that holds the header, as JSON.
HEADER_KEY = "sightline"


def check_names(names: list[str]) -> list[str]:
    """Returns names of styles. Raises ValueError for one that two styles have."""
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"{count} styles are named {name!r:.60}")
    return names


class FixedStyleHeader(BaseModel):
    """The header of a network for fixed styles. Keys that are not named here are metadata."""

    model_config = ConfigDict(extra="allow", strict=True)

    kind: Literal["sightline-stylizer"]
    styles: Annotated[list[str], Field(min_length=1, max_length=4096), AfterValidator(check_names)]
    width: Annotated[int, Field(ge=1, le=512)]
    blocks: Annotated[int, Field(ge=0, le=64)]
    norm: NormKind
    sha256: str | None = None  # of the weights; files of earlier versions have none


class AnyStyleHeader(BaseModel):
    """The header of a network for any style. Keys that are not named here are metadata."""

    model_config = ConfigDict(extra="allow", strict=True)

    kind: Literal["sightline-any-style"]
    encoder: dict[str, Any]  # a recipe, which `load_recipe_model` checks
    sha256: str | None = None


StyleHeader = Annotated[FixedStyleHeader | AnyStyleHeader, Field(discriminator="kind")]

STYLE_HEADER_ADAPTER: TypeAdapter[FixedStyleHeader | AnyStyleHeader] = TypeAdapter(StyleHeader)


def read_network_header(path: Path) -> FixedStyleHeader | AnyStyleHeader:
    """Reads and checks the header of a safetensors file.

    Raises SightlineError for a file that is no style network, and for a header with a value missing
    or out of range.
    """
    header_json = read_header_json(path)
    try:
        return STYLE_HEADER_ADAPTER.validate_json(header_json)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # no JSON, no object, no kind, or another kind
            raise SightlineError(
                f"{path.name} holds weights, but not of a style network;"
                " `sightline stylizer train` writes those"
            ) from error
        location = ".".join(str(key) for key in first["loc"][1:])
        if first["type"] == "missing":
            problem = f"its header lacks {location!r}"
        else:
            problem = (
                f"{location!r:.80} in its header is {first['input']!r:.60} ({first['msg'].lower()})"
            )
        raise SightlineError(f"{path.name} is a damaged style network: {problem}") from error


def read_header_json(path: Path) -> str:
    """The header of a safetensors file as JSON, "null" where there is none."""
    from safetensors import safe_open

    if path.suffix != ".safetensors":
        return "null"
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    return metadata.get(HEADER_KEY, "null")
