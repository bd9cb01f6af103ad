"""Texture synthesis: a larger picture of the same texture (Efros & Leung 1999 to Heitz 2021)."""

from collections.abc import Sequence
from typing import Annotated, Literal

from torch import Tensor
from torch.nn.functional import pad

from sightline.errors import SightlineError, make_out_of_range_error
from sightline.images.io.pictures import resolve_image
from sightline.images.plotting.maps import arrange_in_row
from sightline.methods.texture.makers import TEXTURE_MAKERS, synthesize_pictures
from sightline.methods.texture.metrics import (
    estimate_exemplar_memory,
    measure_copy_rate,
    measure_seam,
    measure_seed_diversity,
)
from sightline.methods.texture.neural import measure_held_out_errors
from sightline.methods.texture.request import TextureRequest
from sightline.models.model import Model
from sightline.models.tracing.receptive_field import receptive_field
from sightline.optim.perceptual.layers import choose_perceptual_layers, require_image_maps
from sightline.optim.tiled import reaches_layers
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.progress import Callback
from sightline.registry.result import Result

MIN_EXEMPLAR_SIDE = 16

NEURAL_METHODS = ("gatys", "sliced")

# Neighborhoods in pixels; blocks of quilting are a quarter of the exemplar.
DEFAULT_WINDOWS = {"efros_leung": 13, "wei_levoy": 9, "patchmatch": 7}

# As the caption names the methods.
METHOD_PHRASES = {
    "efros_leung": "Efros and Leung's growing",
    "wei_levoy": "Wei and Levoy's scan",
    "gatys": "Gatys' Gram matrices",
    "sliced": "sliced distributions",
}


@register_method(
    chapter="artistic",
    title="Texture synthesis",
    question="What would more of this texture look like?",
    reading="The exemplar on the left and a larger picture made from it, both at the same scale. "
    "Look for repetitions, for seams, and for what the exemplar has but the large picture lacks.",
    caution="A good texture may be a copy: see the copy rate. The classical methods do not use the "
    "network; they show how far local statistics alone go. Gram matrices (gatys) need a network "
    "of many textures, such as VGG: those of the small embedded one give grain.",
    tour_runs=({"image": "gravel", "method": "quilting", "side": 256},),
    quick_parameters={"side": 192},
)
def texture(
    model: Model,
    image: Tensor,
    *,
    method: Literal[
        "quilting", "efros_leung", "wei_levoy", "patchmatch", "gatys", "sliced"
    ] = "quilting",
    side: Annotated[int | None, ValueRange(MIN_EXEMPLAR_SIDE, 8192)] = None,
    window: Annotated[int | None, ValueRange(3, 256)] = None,
    tileable: bool = False,
    guide: Tensor | str | None = None,
    count: Annotated[int, ValueRange(1, 64)] = 1,
    layers: tuple[str, ...] | None = None,
    steps: Annotated[int, ValueRange(1, 100_000)] = 100,
    pooling: Literal["average", "max"] = "average",
    spectrum: Annotated[float, ValueRange(0, 1e6)] = 0.3,
    memory: Annotated[float, ValueRange(0.01, 10_000)] = 4.0,
    seed: int = 0,
    callback: Callback | None = None,
) -> Result:
    """Makes a larger picture of the same texture from a small exemplar.

    `values["image"]` is the pictures, N·count×3×H×W, those of one exemplar together. One number
    per picture: `copy_rate` is the share of its 12×12 patches that are copied from the exemplar;
    `seam` the ratio of the step across its edges to the steps between neighboring pixels inside
    (about 1 where it tiles), `seam_rank` the share of those that are smaller (near 1 for a visible
    seam); `held_out` and `other_network` the relative error of Gram matrices in layers, and in a
    network, that it was not made with. With a `count`, `diversity` is how much the pictures of
    each exemplar differ (0 equal, about 1 unrelated).

    Args:
        method: "quilting" lays whole blocks (Efros & Freeman 2001), "efros_leung" grows pixel by
            pixel (1999), "wei_levoy" scans a pyramid (2000), "patchmatch" makes all patches fit
            (Kwatra 2005, Barnes 2009); "gatys" (2015) and "sliced" (Heitz 2021) optimize noise
            until the network's features are distributed as the exemplar's.
        side: Side of the square picture in pixels; by default twice the exemplar's short side, or
            for "gatys" and "sliced" the network's own size where it takes no other.
        window: Side of the blocks ("quilting"; by default a quarter of the exemplar) or of the
            neighborhoods (13, 9 and 7) in pixels; about as large as the largest structure that
            repeats.
        tileable: Whether the picture continues across its edges; for "wei_levoy" and "patchmatch"
            it always does.
        guide: Picture to remake from the texture by its luminance, for "quilting" (texture
            transfer); it also sets the size.
        count: Number of pictures per exemplar, with consecutive seeds.
        layers: Layers whose statistics are matched, for "gatys" and "sliced"; by default those
            tuned for the network's family.
        steps: Steps at each size, for "gatys" and "sliced".
        pooling: "average" replaces max pooling by average pooling, as Gatys did; "max" keeps it.
        spectrum: Weight of the exemplar's spectrum beside the statistics (Liu 2016). It keeps
            distant repetitions aligned, and grain out that the network's strides do not see; 0 is
            Gatys' original.
        memory: Memory limit in GB. What needs more is refused before it begins, or with "gatys"
            computed in tiles, with exactly the same gradient.
    """
    exemplars = image.cpu()
    check_exemplar_size(exemplars)
    guide_picture = read_transfer_guide(guide, method, side)
    if guide_picture is not None and exemplars.shape[1] != 3:
        raise SightlineError(
            f"a guide is followed by its luminance, which {exemplars.shape[1]} bands do not have; "
            "leave out guide"
        )
    window_side = choose_texture_window(window, method, exemplars)
    used_layers = choose_texture_layers(model, layers, neural=method in NEURAL_METHODS)
    size = choose_texture_size(exemplars, guide_picture, side)
    if method in NEURAL_METHODS and side is None and not reaches_layers(model, used_layers, size):
        size = choose_network_size(model, used_layers, size)
    check_texture_memory(method, exemplars, size, window_side, memory)

    request = TextureRequest(
        exemplar=exemplars[0],
        size=size,
        window=window_side,
        tileable=tileable,
        guide=guide_picture,
        model=model,
        layers=used_layers,
        steps=steps,
        use_average_pooling=pooling == "average",
        spectrum_weight=spectrum,
        memory_gb=memory,
        seed=seed,
        callback=callback,
    )
    pictures = synthesize_pictures(TEXTURE_MAKERS[method], request, exemplars, count)

    measures = {
        **measure_textures(pictures, exemplars, count),
        **measure_held_out_errors(model, used_layers, pictures, exemplars, count),
    }
    panel = render_comparison_row(
        model.to_picture(exemplars), guide_picture, model.to_picture(pictures)
    )
    caption = describe_texture(method, exemplars, guide_picture, size, measures)
    return Result({"texture": panel}, {"image": pictures, **measures}, {"texture": caption})


# ── parameters ──


def check_exemplar_size(image: Tensor) -> None:
    """Raises SightlineError for exemplars that are too small."""
    height, width = image.shape[-2:]
    if min(height, width) < MIN_EXEMPLAR_SIDE:
        raise SightlineError(
            f"the exemplar is {height}×{width} pixels; a texture needs "
            f"{MIN_EXEMPLAR_SIDE}×{MIN_EXEMPLAR_SIDE} or more"
        )


def read_transfer_guide(guide: Tensor | str | None, method: str, side: int | None) -> Tensor | None:
    """The picture that a texture transfer follows, 3×H×W, or None.

    Raises SightlineError for a guide that can't be read or is too small, and where it conflicts
    with the method or with `side`.
    """
    if guide is None:
        return None
    if method != "quilting":
        raise SightlineError(f"only method='quilting' follows a guide, not {method!r}")
    if side is not None:
        raise SightlineError("the guide sets the size; leave out side or guide")
    picture = resolve_image(guide)[0].cpu()
    height, width = picture.shape[-2:]
    if min(height, width) < MIN_EXEMPLAR_SIDE:
        raise SightlineError(
            f"the guide is {height}×{width} pixels; it needs "
            f"{MIN_EXEMPLAR_SIDE}×{MIN_EXEMPLAR_SIDE} or more"
        )
    return picture


def choose_texture_size(image: Tensor, guide: Tensor | None, side: int | None) -> tuple[int, int]:
    """The size (H, W) of the picture: the guide's, or a square."""
    if guide is not None:
        return guide.shape[-2], guide.shape[-1]
    square_side = side or 2 * min(image.shape[-2:])
    return square_side, square_side


def choose_network_size(
    model: Model, layers: Sequence[str], size: tuple[int, int]
) -> tuple[int, int]:
    """The network's own size in place of one that it does not take.

    Raises SightlineError where it takes neither.
    """
    if not reaches_layers(model, layers, model.image_size):
        raise SightlineError(
            f"{model.name} takes no picture of {size[0]}×{size[1]} pixels, twice the exemplar's "
            "short side; give a side= that it takes"
        )
    return model.image_size


def choose_texture_layers(
    model: Model, layers: tuple[str, ...] | None, *, neural: bool
) -> tuple[str, ...]:
    """The layers whose statistics make or judge the texture.

    None for a classical method with a network that has no spatial layers. Raises SightlineError
    for layers that are unknown or not spatial.
    """
    if layers:
        for name in layers:
            receptive_field(model, name)  # raises for a layer that is not spatial
        require_image_maps(model, layers)
        return layers
    try:
        return choose_perceptual_layers(model).style
    except SightlineError:
        if neural:
            raise
        return ()


def choose_texture_window(window: int | None, method: str, image: Tensor) -> int:
    """The side of blocks or neighborhoods in pixels; 0 for neural methods, which have none.

    Raises SightlineError for a window that a neural method does not take.
    """
    if method in NEURAL_METHODS:
        if window is not None:
            raise SightlineError(f"window is for the classical methods, not {method!r}")
        return 0
    if window is None:
        short_side = min(image.shape[-2:])
        window = min(DEFAULT_WINDOWS.get(method, short_side // 4), short_side // 2)
    return fit_texture_window(window, method, image)


def fit_texture_window(window: int, method: str, image: Tensor) -> int:
    """The window, made odd where a pixel lies in its middle.

    Raises SightlineError where it does not fit into the exemplar.
    """
    min_window = 6
    if method != "quilting":
        min_window = 3
        window = window | 1
    max_window = min(image.shape[-2:]) * 2 // 3
    if not min_window <= window <= max_window:
        raise make_out_of_range_error("window", window, min_window, max_window)
    return window


def check_texture_memory(
    method: str, image: Tensor, output_size: tuple[int, int], window: int, memory_gb: float
) -> None:
    """Raises SightlineError, with the need, where a classical method exceeds the memory."""
    height, width = image.shape[-2:]
    need = estimate_exemplar_memory(method, (height, width), output_size, window)
    if need > memory_gb:
        raise SightlineError(
            f"{output_size[0]}×{output_size[1]} pixels from {height}×{width} by method={method!r} "
            f"with windows of {window} need about {need:.1f} GB, more than memory={memory_gb:g}; "
            "raise memory, lower side or window, or use method='quilting'"
        )


# ── measures, figure and caption ──


def measure_textures(pictures: Tensor, exemplars: Tensor, count: int) -> dict[str, list[float]]:
    """Copy rate and seam of each picture; with a count, the diversity for each exemplar."""
    copy_rates: list[float] = []
    seam_ratios: list[float] = []
    seam_ranks: list[float] = []
    for index, picture in enumerate(pictures):
        copy_rates.append(measure_copy_rate(picture, exemplars[index // count]))
        ratio, rank = measure_seam(picture)
        seam_ratios.append(ratio)
        seam_ranks.append(rank)

    measures = {"copy_rate": copy_rates, "seam": seam_ratios, "seam_rank": seam_ranks}
    if count > 1:
        groups = [group for group in pictures.split(count) if len(group) > 1]
        measures["diversity"] = [measure_seed_diversity(group) for group in groups]
    return measures


def render_comparison_row(exemplars: Tensor, guide: Tensor | None, pictures: Tensor) -> Tensor:
    """The first exemplar, the guide if there is one, and the first picture, at the same scale."""
    panels = [exemplars[:1], pictures[:1]]
    if guide is not None:
        panels.insert(1, guide[None])
    return arrange_in_row(*pad_to_same_height(*panels))


def pad_to_same_height(*pictures: Tensor) -> list[Tensor]:
    """Pads pictures N×3×H×W with white below, so that placing them in a row rescales none."""
    height = max(picture.shape[2] for picture in pictures)
    padded: list[Tensor] = []
    for picture in pictures:
        missing_rows = height - picture.shape[2]
        padded.append(pad(picture, (0, 0, 0, missing_rows), value=1.0))
    return padded


def describe_texture(
    method: str,
    exemplars: Tensor,
    guide: Tensor | None,
    size: tuple[int, int],
    measures: dict[str, list[float]],
) -> str:
    """The caption, with the measures of the first picture."""
    guide_phrase = "" if guide is None else "the picture to follow, and "
    network_phrase = ""
    if "held_out" in measures:
        network_phrase = (
            f"; Gram matrices differ by {measures['held_out'][0]:.0%} in layers, and by "
            f"{measures['other_network'][0]:.0%} in a network, that it was not made with"
        )
    return (
        f"The exemplar, {exemplars.shape[-2]}×{exemplars.shape[-1]} pixels, and {guide_phrase}"
        f"{size[0]}×{size[1]} pixels made from it by {METHOD_PHRASES.get(method, method)}. "
        f"{measures['copy_rate'][0]:.0%} of its 12×12 patches are copies; the step across its "
        f"edges is {measures['seam'][0]:.1f} × that inside, larger than "
        f"{measures['seam_rank'][0]:.0%} of those{network_phrase}."
    )
