"""Texture synthesis: more of the same, from a small piece (Efros & Leung 1999 to Heitz 2021)."""

from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from sightline.errors import SightlineError, make_out_of_range_error
from sightline.images.io import resolve_image
from sightline.images.plotting.maps import arrange_in_row
from sightline.methods.texture.efros_leung import grow_texture
from sightline.methods.texture.metrics import (
    estimate_exemplar_memory,
    measure_copy_rate,
    measure_seam,
    measure_seed_diversity,
)
from sightline.methods.texture.neural import make_statistics_maker, measure_held_out_errors
from sightline.methods.texture.patchmatch import optimize_texture
from sightline.methods.texture.quilting import quilt_texture, transfer_texture
from sightline.methods.texture.request import TextureMaker, TextureRequest
from sightline.methods.texture.wei_levoy import scan_texture
from sightline.models.model import Model
from sightline.models.tracing.receptive_field import receptive_field
from sightline.optim.perceptual.layers import choose_perceptual_layers
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.progress import Callback, MultiRunCallback
from sightline.registry.result import Result

MIN_EXEMPLAR_SIDE = 16


@register_method(
    chapter="artistic",
    title="Texture synthesis",
    question="What would more of this texture look like?",
    reading="The small piece on the left, and a larger picture made of it, both at the same scale. Look for what repeats, for joints, and for what the piece has but the large picture lacks.",
    caution="A good texture may be a copy: see the copy rate. The classical ways know nothing of the network; they show how far local statistics alone go.",
    tour_runs=(
        {"image": "gravel", "method": "quilting"},
        {"image": "gravel", "method": "gatys", "side": 160, "steps": 60},
    ),
    quick_parameters={"side": 128},
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
    """Makes a larger picture of the same texture from a small piece of it.

    `values["image"]` is the pictures, N·count×3×H×W (those of one exemplar together); `copy_rate` the share of their 12×12
    patches that stand in the exemplar as they are; `seam` how much steeper the step from edge to opposite edge is than those between
    neighbours inside (about 1 where a picture tiles), `seam_rank` the share of those that are smaller (a joint exceeds nearly all);
    `held_out` and `other_network` the relative error of Gram matrices in layers, and in a network, that it was not made by; with a
    `count`, `diversity` how much the seeds differ (0 equal, about 1 unrelated).

    Args:
        method: "quilting" lays whole blocks (Efros & Freeman 2001), "efros_leung" grows pixel by pixel (1999), "wei_levoy"
            scans a pyramid (2000), "patchmatch" makes every patch alike (Kwatra 2005, Barnes 2009); "gatys" (2015) and "sliced"
            (Heitz 2021) change noise until the network's features are distributed as the exemplar's.
        side: Side of the square picture in pixels; twice the exemplar's shorter side by default.
        window: Side of the blocks ("quilting"; a quarter of the exemplar by default) or of the neighbourhoods (13, 9 and 7)
            in pixels; about as large as the largest thing that repeats.
        tileable: Whether the picture shall continue across its edges; "wei_levoy" and "patchmatch" always do.
        guide: A picture to remake from the texture by its light and dark, for "quilting" (texture transfer); it gives the size.
        count: How many pictures, from this seed on.
        layers: Layers of the network whose statistics count, for "gatys" and "sliced"; by default those tuned for its family.
        steps: Steps at each size, for "gatys" and "sliced".
        pooling: "average" pools by the mean in the place of the maximum, as Gatys did, or "max".
        spectrum: Weight of the exemplar's spectrum beside the statistics (Liu 2016): it holds far repeats together and
            keeps grain out that the network's strides don't see; 0 is Gatys' own.
        memory: GB that the work may take; what needs more is refused before it begins, or with "gatys" made in tiles with the very same
            gradient.
    """
    if min(image.shape[-2:]) < MIN_EXEMPLAR_SIDE:
        raise SightlineError(
            f"the exemplar is {image.shape[-2]}×{image.shape[-1]} pixels; a texture needs {MIN_EXEMPLAR_SIDE}×{MIN_EXEMPLAR_SIDE} or more"
        )
    target = read_transfer_guide(guide, method, side)
    neural = method in ("gatys", "sliced")
    if neural and window is not None:
        raise SightlineError(f"window is for the classical methods, not {method!r}")
    square = side or 2 * min(image.shape[-2:])
    shape = (target.shape[-2], target.shape[-1]) if target is not None else (square, square)
    used = choose_texture_layers(model, layers, neural=neural)
    preset = min(
        DEFAULT_WINDOWS.get(method, min(image.shape[-2:]) // 4), min(image.shape[-2:]) // 2
    )
    width = 0 if neural else fit_texture_window(preset if window is None else window, method, image)
    check_texture_memory(method, image, shape, width, memory)
    made = list[Tensor]()
    for number, (exemplar, variation) in enumerate(
        (exemplar, seed + index) for exemplar in image.cpu() for index in range(count)
    ):
        watch = MultiRunCallback(callback, number, len(image) * count)
        told = (
            model,
            used,
            steps,
            pooling == "average",
            spectrum,
            memory,
            variation,
            watch if callback else None,
        )
        made.append(
            TEXTURE_MAKERS[method](
                TextureRequest(exemplar, shape, width, tileable, target, *told)
            ).clamp(0, 1)
        )
        if watch.stopped:
            break
    pictures = torch.stack(made)
    values = {
        **measure_textures(pictures, image.cpu(), count),
        **measure_held_out_errors(model, used, pictures, image.cpu(), count),
    }
    panel = arrange_in_row(
        *pad_to_same_height(
            image[:1].cpu(), *([] if target is None else [target[None]]), pictures[:1]
        )
    )
    judgement = (
        f"; Gram matrices differ by {values['held_out'][0]:.0%} in layers, and by {values['other_network'][0]:.0%} in a network, that it was not made by"
        if used
        else ""
    )
    caption = (
        f"The exemplar, {image.shape[-2]}×{image.shape[-1]} pixels, and {'the picture to follow, and ' if target is not None else ''}"
        f"{shape[0]}×{shape[1]} pixels made of it by {METHOD_PHRASES.get(method, method)}. {values['copy_rate'][0]:.0%} of its 12×12 patches are copied whole; "
        f"the step across its edges is {values['seam'][0]:.1f} × that inside, larger than {values['seam_rank'][0]:.0%} of those{judgement}."
    )
    return Result({"texture": panel}, {"image": pictures, **values}, {"texture": caption})


def synthesize_by_quilting(request: TextureRequest) -> Tensor:
    """Blocks, or blocks that follow a picture."""
    if request.guide is not None:
        return transfer_texture(
            request.exemplar,
            request.guide,
            block=request.window,
            generator=request.generator,
            callback=request.callback,
        )[0]
    return quilt_texture(
        request.exemplar,
        request.size,
        block=request.window,
        generator=request.generator,
        tileable=request.tileable,
        callback=request.callback,
    )[0]


def synthesize_by_growing(request: TextureRequest) -> Tensor:
    """Pixel by pixel, outwards."""
    return grow_texture(
        request.exemplar,
        request.size,
        window=request.window,
        generator=request.generator,
        tileable=request.tileable,
        callback=request.callback,
    )


def synthesize_by_scanning(request: TextureRequest) -> Tensor:
    """Pixel by pixel, line by line."""
    return scan_texture(
        request.exemplar,
        request.size,
        window=request.window,
        generator=request.generator,
        callback=request.callback,
    )


def synthesize_by_patchmatch(request: TextureRequest) -> Tensor:
    """All pixels at once, until their patches fit."""
    return optimize_texture(
        request.exemplar,
        request.size,
        window=request.window,
        generator=request.generator,
        callback=request.callback,
    )[0]


TEXTURE_MAKERS: dict[str, TextureMaker] = {
    "quilting": synthesize_by_quilting,
    "efros_leung": synthesize_by_growing,
    "wei_levoy": synthesize_by_scanning,
    "patchmatch": synthesize_by_patchmatch,
    "gatys": make_statistics_maker("gram"),
    "sliced": make_statistics_maker("sliced"),
}

METHOD_PHRASES = {
    "efros_leung": "Efros and Leung's growing",
    "wei_levoy": "Wei and Levoy's scan",
    "gatys": "Gatys' Gram matrices",
    "sliced": "sliced distributions",
}

DEFAULT_WINDOWS = {"efros_leung": 13, "wei_levoy": 9, "patchmatch": 7}


def choose_texture_layers(
    model: Model, layers: tuple[str, ...] | None, *, neural: bool
) -> tuple[str, ...]:
    """The layers whose statistics make or judge the texture; none for a classical way beside a network without places."""
    if not layers:
        try:
            return choose_perceptual_layers(model).style
        except SightlineError:
            if neural:
                raise
            return ()
    for name in layers:
        receptive_field(model, name)  # refuses what has no places
    return layers


def read_transfer_guide(guide: Tensor | str | None, method: str, side: int | None) -> Tensor | None:
    """The picture that a texture transfer follows, 3×H×W."""
    if guide is None:
        return None
    if method != "quilting":
        raise SightlineError(f"a guide is followed by method='quilting' only, not {method!r}")
    if side is not None:
        raise SightlineError("the guide gives the size; leave out side or guide")
    picture = resolve_image(guide)[0].cpu()
    if min(picture.shape[-2:]) < MIN_EXEMPLAR_SIDE:
        raise SightlineError(
            f"the guide is {picture.shape[-2]}×{picture.shape[-1]} pixels; it needs {MIN_EXEMPLAR_SIDE}×{MIN_EXEMPLAR_SIDE} or more"
        )
    return picture


def fit_texture_window(window: int, method: str, image: Tensor) -> int:
    """The window, made odd where it has a middle; raises SightlineError where it does not fit into the exemplar."""
    window = window if method == "quilting" else window | 1
    least, most = (6 if method == "quilting" else 3), min(image.shape[-2:]) * 2 // 3
    if not least <= window <= most:
        raise make_out_of_range_error("window", window, least, most)
    return window


def check_texture_memory(
    method: str, image: Tensor, output_size: tuple[int, int], window: int, memory_gb: float
) -> None:
    """Raises SightlineError, with what would be needed, where a classical way exceeds the memory."""
    need = estimate_exemplar_memory(method, (image.shape[-2], image.shape[-1]), output_size, window)
    if need > memory_gb:
        raise SightlineError(
            f"{output_size[0]}×{output_size[1]} pixels from {image.shape[-2]}×{image.shape[-1]} by method={method!r} with windows of {window} need about "
            f"{need:.1f} GB, more than memory={memory_gb:g}; raise memory, lower side or window, or lay blocks with method='quilting'"
        )


def pad_to_same_height(*pictures: Tensor) -> list[Tensor]:
    """Pictures N×3×H×W with white below the lower ones, so that `beside` enlarges none: a stone stays as large as it is."""
    height = max(picture.shape[2] for picture in pictures)
    return [pad(picture, (0, 0, 0, height - picture.shape[2]), value=1.0) for picture in pictures]


def measure_textures(pictures: Tensor, exemplars: Tensor, count: int) -> dict[str, list[float]]:
    """Copy rate, seam and diversity of each picture."""
    seams = [measure_seam(picture) for picture in pictures]
    values = {
        "copy_rate": [
            measure_copy_rate(picture, exemplars[index // count])
            for index, picture in enumerate(pictures)
        ],
        "seam": [ratio for ratio, _ in seams],
        "seam_rank": [share for _, share in seams],
    }
    return (
        {
            **values,
            "diversity": [
                measure_seed_diversity(group) for group in pictures.split(count) if len(group) > 1
            ],
        }
        if count > 1
        else values
    )
