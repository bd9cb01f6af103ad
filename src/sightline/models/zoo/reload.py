"""The network that a recipe names, loaded again with exactly its weights.

A recipe, a store and a style network's header are data that people pass on. They may name an
architecture of a library, a file of weights and the network's preprocessing, and nothing else: no
code, no URL, and no constructor option that is not listed here.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from sightline.errors import SightlineError
from sightline.models.ablation import AblationFill
from sightline.models.heads.output_head import DeclaredKind
from sightline.models.model import Model
from sightline.models.weights.checkpoint import hash_file
from sightline.models.zoo.builders import find_embedded_weights
from sightline.models.zoo.libraries.hugging_face import HUGGING_FACE_PREFIX
from sightline.models.zoo.load import load
from sightline.models.zoo.names import EMBEDDED_NETWORKS

OptionCount = Annotated[int, Field(ge=0, le=100_000)]

PixelSide = Annotated[int, Field(ge=1, le=16_384)]

UnitRate = Annotated[float, Field(ge=0, le=1)]

# The name of a pooling, an activation or a padding: a word, never a path or a URL.
OptionWord = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{0,40}$")]

ChannelStatistics = Annotated[list[float], Field(min_length=1, max_length=1_000)]

ImageSides = Annotated[list[PixelSide], Field(min_length=2, max_length=2)]

# The way to a part of the output: "logits", "heads.sex", "0".
OutputPath = Annotated[str, Field(pattern=r"^[A-Za-z0-9_. -]{1,200}$")]

# What a further input may be: a number, a switch, a word, or numbers in a list.
InputNumber = Annotated[float, Field(allow_inf_nan=False)]
InputValue = (
    bool
    | int
    | InputNumber
    | OptionWord
    | Annotated[list[int | InputNumber], Field(max_length=1_000)]
)
InputName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,60}$")]

LayoutWord = Literal["bgr", "0..255", "nhwc", "uint8"]
LayoutText = Annotated[str, Field(pattern=r"^(?:(?:bgr|0\.\.255|nhwc|uint8) ?)+$", max_length=60)]

Band = Annotated[int, Field(ge=0, le=1_000)]


class StrictModel(BaseModel):
    """A structure that refuses other fields and other types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class NetworkOptions(StrictModel):
    """What a recipe may pass to `load`: preprocessing, and constructor options that do no harm."""

    mean: ChannelStatistics | None = None
    std: ChannelStatistics | None = None
    labels: list[str] | None = None
    size: PixelSide | ImageSides | None = None
    output: int | OutputPath | None = None
    output_kind: DeclaredKind | None = None
    unit: Annotated[str, Field(max_length=40)] | None = None
    inputs: Annotated[dict[InputName, InputValue], Field(max_length=20)] | None = None
    preprocess: LayoutText | list[LayoutWord] | None = None
    bands: Annotated[list[Band], Field(min_length=3, max_length=3)] | None = None
    num_classes: OptionCount | None = None
    classes: OptionCount | None = None
    batch_norm: bool | None = None
    in_chans: Annotated[int, Field(ge=1, le=1_000)] | None = None
    img_size: PixelSide | list[PixelSide] | None = None
    image_size: PixelSide | None = None
    patch_size: PixelSide | None = None
    output_stride: Literal[8, 16, 32] | None = None
    dynamic_img_size: bool | None = None
    dynamic_img_pad: bool | None = None
    min_size: PixelSide | None = None
    max_size: PixelSide | None = None
    score_thresh: UnitRate | None = None
    box_score_thresh: UnitRate | None = None
    aux_loss: bool | None = None
    aux_logits: bool | None = None
    transform_input: bool | None = None
    init_weights: bool | None = None
    dropout: UnitRate | None = None
    drop_rate: UnitRate | None = None
    drop_path_rate: UnitRate | None = None
    stochastic_depth_prob: UnitRate | None = None
    act_layer: OptionWord | None = None
    norm_layer: OptionWord | None = None
    global_pool: OptionWord | None = None
    pad_type: OptionWord | None = None


UnitNumbers = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=100_000)]

LayerName = Annotated[str, Field(min_length=1, max_length=1_000)]


class AblationRecipe(StrictModel):
    """Units that are off, as `Model.ablated` takes them.

    `images` is the digest of the reference images, where they are not the samples.
    """

    units: Annotated[dict[LayerName, UnitNumbers], Field(min_length=1, max_length=10_000)]
    fill: AblationFill = "zero"
    seed: int = 0
    images: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None


class ModelRecipe(StrictModel):
    """The `model` part of a recipe, a store's description or a style network's header."""

    model: str
    weights: str | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    options: NetworkOptions = NetworkOptions()
    ablated: Annotated[list[AblationRecipe], Field(max_length=100)] = Field(
        default_factory=list[AblationRecipe]
    )


# What to do about a network that a recipe can't bring by itself.
GIVE_NETWORK = "give it with model=, or with --model on the command line"

_ABLATIONS = TypeAdapter(list[AblationRecipe])


def load_recipe_model(
    model_recipe: Mapping[str, Any], device: str | torch.device | None = None
) -> Model:
    """The recipe's network, with the weights that it was made with.

    Raises SightlineError where the network can't be loaded by name, where the recipe asks for more
    than a recipe may (code, an unknown option, a URL), and where the weights changed.
    """
    recipe = parse_model_recipe(model_recipe)
    options = recipe.options.model_dump(exclude_none=True)
    name = _find_embedded_network(recipe) or recipe.model
    model = load(name, weights=recipe.weights, device=device, **options)
    if recipe.sha256 is not None and model.recipe.get("sha256") != recipe.sha256:
        raise SightlineError(
            f"the weights of {recipe.weights or recipe.model} are no longer those that the recipe "
            "was made with (its SHA-256 differs)"
        )
    return _apply_ablations(model, recipe.ablated)


def ablate_by_recipe(model: Model, model_recipe: Mapping[str, Any]) -> Model:
    """A network that was given in code, with the units off that the recipe says are.

    A network some of whose units are off already is taken as it is. Raises SightlineError for
    what a recipe can't hold.
    """
    requests = model_recipe.get("ablated")
    if not requests or model.ablations:
        return model
    try:
        ablations = _ABLATIONS.validate_python(convert_to_json_types(requests))
    except ValidationError as error:
        reason = describe_validation_error(error)
        raise SightlineError(f"this recipe's ablated can't be read: {reason}") from error
    return _apply_ablations(model, ablations)


def _apply_ablations(model: Model, ablations: Sequence[AblationRecipe]) -> Model:
    """The network with these units off. Raises SightlineError for reference images of its own."""
    for ablation in ablations:
        if ablation.images is not None:
            raise SightlineError(
                f"the recipe's units are filled by {ablation.fill} over images that it does not "
                "hold; give the network with model=, its units turned off by model.ablated"
            )
        model = model.ablated(ablation.units, fill=ablation.fill, seed=ablation.seed)
    return model


def _find_embedded_network(recipe: ModelRecipe) -> str | None:
    """The embedded network that has the recipe's weights, whichever of their names it says.

    Before the default was trained against adversarial examples, it had those of `sightnet_plain`.
    """
    if recipe.model not in EMBEDDED_NETWORKS or recipe.weights is not None:
        return None
    for name in (recipe.model, *EMBEDDED_NETWORKS):
        if hash_file(find_embedded_weights(name)) == recipe.sha256:
            return name
    return None


def parse_model_recipe(model_recipe: Mapping[str, Any]) -> ModelRecipe:
    """The recipe, checked; raises SightlineError for what a recipe may not ask for."""
    name = model_recipe.get("model")
    if model_recipe.get("built_in_code"):
        raise SightlineError(
            f"the recipe's network is a {name} that was built in code; {GIVE_NETWORK}"
        )
    if not isinstance(name, str):
        raise SightlineError(f"this recipe does not name its network; {GIVE_NETWORK}")
    if name.startswith(HUGGING_FACE_PREFIX):
        raise SightlineError(
            f"the recipe's network is {name}, and a recipe may name no folder or address; "
            f"{GIVE_NETWORK}"
        )
    if ":" in name:
        raise SightlineError(
            f"the recipe's network is made by code ({name}), which a recipe may not run; "
            f"{GIVE_NETWORK}"
        )
    try:
        recipe = ModelRecipe.model_validate(convert_to_json_types(model_recipe))
    except ValidationError as error:
        raise SightlineError(
            f"this recipe's network can't be loaded: {describe_validation_error(error)}; "
            f"{GIVE_NETWORK}"
        ) from error
    # A file counts only together with its digest, so that the recipe's own weights are loaded.
    if recipe.weights not in (None, "random") and recipe.sha256 is None:
        raise SightlineError(
            f"this recipe names the weights {recipe.weights} without their SHA-256; {GIVE_NETWORK}"
        )
    return recipe


def convert_to_json_types(value: Any) -> Any:
    """The value with tuples as lists and mappings as dicts, as JSON would return them."""
    if isinstance(value, Mapping):
        return {str(key): convert_to_json_types(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [convert_to_json_types(item) for item in value]
    return value


def describe_validation_error(error: ValidationError) -> str:
    """The first error of a recipe in one line: the field, its value and what is allowed."""
    first = error.errors()[0]
    location = first["loc"]
    field = ".".join(str(key) for key in location)
    if first["type"] == "extra_forbidden":
        schema = NetworkOptions if location[0] == "options" else ModelRecipe
        allowed = ", ".join(schema.model_fields)
        return f"{field!r:.80} is not allowed in a recipe (allowed are {allowed})"
    reason = first["msg"].lower()
    return f"{field!r:.80} is {first['input']!r:.60} ({reason})"
