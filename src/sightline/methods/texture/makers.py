"""The texture methods by name, and several pictures by one of them."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from sightline.methods.texture.efros_leung import grow_texture
from sightline.methods.texture.neural import synthesize_from_statistics
from sightline.methods.texture.patchmatch import optimize_texture
from sightline.methods.texture.quilting import quilt_texture, transfer_texture
from sightline.methods.texture.request import TextureMaker, TextureRequest
from sightline.methods.texture.wei_levoy import scan_texture
from sightline.registry.progress import MultiRunCallback


def synthesize_by_quilting(request: TextureRequest) -> Tensor:
    """Quilting, or texture transfer if there is a guide: C×H×W."""
    if request.guide is not None:
        picture, _ = transfer_texture(
            request.exemplar,
            request.guide,
            block=request.window,
            generator=request.generator,
            callback=request.callback,
        )
        return picture
    picture, _ = quilt_texture(
        request.exemplar,
        request.size,
        block=request.window,
        generator=request.generator,
        tileable=request.tileable,
        callback=request.callback,
    )
    return picture


def synthesize_by_growing(request: TextureRequest) -> Tensor:
    """Efros & Leung's non-parametric sampling: C×H×W."""
    return grow_texture(
        request.exemplar,
        request.size,
        window=request.window,
        generator=request.generator,
        tileable=request.tileable,
        callback=request.callback,
    )


def synthesize_by_scanning(request: TextureRequest) -> Tensor:
    """Wei & Levoy's raster scan: C×H×W."""
    return scan_texture(
        request.exemplar,
        request.size,
        window=request.window,
        generator=request.generator,
        callback=request.callback,
    )


def synthesize_by_patchmatch(request: TextureRequest) -> Tensor:
    """Texture optimization with PatchMatch: C×H×W."""
    picture, _ = optimize_texture(
        request.exemplar,
        request.size,
        window=request.window,
        generator=request.generator,
        callback=request.callback,
    )
    return picture


TEXTURE_MAKERS: dict[str, TextureMaker] = {
    "quilting": synthesize_by_quilting,
    "efros_leung": synthesize_by_growing,
    "wei_levoy": synthesize_by_scanning,
    "patchmatch": synthesize_by_patchmatch,
    "gatys": partial(synthesize_from_statistics, kind="gram"),
    "sliced": partial(synthesize_from_statistics, kind="sliced"),
}


def synthesize_pictures(
    make_texture: TextureMaker, request: TextureRequest, exemplars: Tensor, count: int
) -> Tensor:
    """`count` pictures of each exemplar N×C×h×w, with consecutive seeds: N·count×C×H×W.

    Fewer if the callback stops the run.
    """
    pictures: list[Tensor] = []
    run_count = len(exemplars) * count
    for run_index in range(run_count):
        run_callback = MultiRunCallback(request.callback, run_index, run_count)
        run_request = replace(
            request,
            exemplar=exemplars[run_index // count],
            seed=request.seed + run_index % count,
            callback=run_callback if request.callback else None,
        )
        pictures.append(make_texture(run_request).clamp(0, 1))
        if run_callback.stopped:
            break
    return torch.stack(pictures)
