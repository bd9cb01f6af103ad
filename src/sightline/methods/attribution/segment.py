"""Segmentation without supervision: a saliency map tells GrabCut where the object is (Simonyan 2013, section 3.2).

Nobody outlined an object for the network, which learned from class labels alone. GrabCut is Rother 2004.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from sightline.images.plotting.maps import arrange_in_row, make_contact_sheet
from sightline.methods.attribution.cam import gradcam
from sightline.methods.attribution.saliency import saliency
from sightline.models.model import Model
from sightline.registry.method import AttributionSpec, register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.result import Result

SeedSource = Literal["saliency", "smoothgrad", "gradcam"]

FOREGROUND_COLOR, BACKGROUND_COLOR = (1.0, 0.2, 0.1), (0.15, 0.4, 1.0)

UNUSED_RECTANGLE = (0, 0, 0, 0)  # GrabCut's rectangle, which a mask leaves unused

CHECKER_SIDE = 8  # pixels of a checkerboard's square


@register_method(
    chapter="analytical",
    title="Segmentation without supervision",
    question="Does the network know where the object ends, though it was only told what is in the picture?",
    reading="Red are the pixels that the score depends on most, blue those it hardly depends on. From their colours GrabCut learns what object and "
    "background look like, and cuts the picture where the colours change. Beside it the outline of the object found, and the object cut out.",
    caution="The network only gives the seeds; the outline comes from the colours. It is good where the object differs in colour from its surroundings, and "
    "the seeds lie on what the network answers to, which may be a part of the object or not the object at all.",
    tour_runs=({"source": "smoothgrad"},),
    attribution=AttributionSpec("map", "source", costly_kinds=("smoothgrad",)),
)
def segment(
    model: Model,
    image: Tensor,
    *,
    label: int | str = "top",
    source: SeedSource = "saliency",
    foreground: Annotated[float, ValueRange(0.5, 1)] = 0.95,
    background: Annotated[float, ValueRange(0, 0.5)] = 0.3,
    smooth: Annotated[float, ValueRange(0, 0.2)] = 0.01,
    steps: Annotated[int, ValueRange(0, 50)] = 5,
    whole: bool = False,
) -> Result:
    """Cuts the object of a class out of the image with GrabCut, started from the class's saliency map.

    `values["mask"]` N×H×W is True on the object, `values["share"]` N its share of the pixels, `values["seeds"]` N×H×W (int8) is 1 at
    foreground seeds, -1 at background seeds, 0 elsewhere; `values["map"]` N×H×W is the unscaled map that they were taken from,
    `values["label"]` N the classes. A map that is the same everywhere has no strongest pixels: its mask is empty.

    Args:
        source: Map that gives the seeds: "saliency" (|gradient|, largest over the colours), "smoothgrad" (the same of the mean over noisy
            copies), "gradcam" (of the last convolution, enlarged).
        foreground: Quantile of the map from which on pixels are seeds of the object.
        background: Quantile of the map up to which pixels are seeds of the background.
        smooth: Radius over which the map is blurred first (standard deviation of a Gaussian as a share of the short side); 0 for the raw map.
        steps: Rounds in which GrabCut learns the colours anew from its last cut; 0 for a single cut by the seeds' colours.
        whole: Keep every piece of the cut instead of the largest one only.
    """
    map_, index = compute_seed_map(model, image, label, source)
    sigma = smooth * min(map_.shape[-2:])
    map_ = blur_seed_map(map_.cpu().nan_to_num(0), sigma)
    seeds = torch.stack([select_seeds(one, foreground, background) for one in map_])
    # OpenCV's random numbers belong to the thread: in one of its own, the caller's stay as they are.
    with ThreadPoolExecutor(1) as apart:
        masks = list(
            apart.map(lambda one, at: run_grabcut(one, at, steps, whole), image.cpu(), seeds)
        )
    mask = torch.stack(masks)
    share = mask.float().flatten(1).mean(1)
    panel = torch.cat(
        [draw_segment_row(image[i : i + 1].cpu(), mask[i], seeds[i]) for i in range(len(mask))]
    )
    names = ", ".join(model.labels[i] for i in index.tolist())
    softly = f" blurred over {sigma:.2g} pixels" if sigma else ""
    caption = (
        f"Seeds from the {source} map of {names}{softly}: red from the {foreground:.0%} quantile on, blue up to the {background:.0%} quantile; the outline "
        f"of the object that GrabCut finds; and the object cut out: {float(share[0]):.0%} of the pixels.{describe_empty_masks(mask, seeds)}"
    )
    values = {"mask": mask, "share": share, "seeds": seeds, "map": map_, "label": index}
    return Result(
        {"segment": make_contact_sheet(panel, columns=1, gap=6)}, values, {"segment": caption}
    )


def compute_seed_map(
    model: Model, image: Tensor, label: int | str, source: SeedSource
) -> tuple[Tensor, Tensor]:
    """The map N×H×W that gives the seeds, and the classes N."""
    # The paper averages the maps of ten crops and mirror images; here it is the map of the image itself.
    if source == "gradcam":
        found = gradcam(model, image, label=label).tensors
        return found["map"], found["label"]
    found = saliency(
        model, image, label=label, kind="gradient" if source == "saliency" else "smoothgrad"
    ).tensors
    return found["saliency"], found["label"]


def blur_seed_map(seed_map: Tensor, sigma: float) -> Tensor:
    """Maps N×H×W under a Gaussian of standard deviation `sigma` in pixels, mirrored at the border."""
    # The paper takes the quantiles of the raw map. A single pixel of its noise would be a seed that GrabCut has to obey:
    # a hole in the object, or a speck of it elsewhere.
    import cv2

    return (
        torch.stack(
            [torch.from_numpy(cv2.GaussianBlur(one.numpy(), (0, 0), sigma)) for one in seed_map]
        )
        if sigma
        else seed_map
    )


def select_seeds(seed_map: Tensor, foreground: float, background: float) -> Tensor:
    """Seeds H×W of a map H×W: 1 from its upper quantile on, -1 up to its lower one, 0 between."""
    import numpy as np

    values = seed_map.double().numpy()
    low, high = np.quantile(values, (background, foreground))
    # The paper has > and <. Maps cut off at zero have many equal values: with >= and <= these are seeds as well, and
    # what equals both quantiles is background.
    seeds = np.where(values <= low, -1, np.where(values >= high, 1, 0))
    return torch.from_numpy(seeds.astype(np.int8))


def run_grabcut(image: Tensor, seeds: Tensor, steps: int, whole: bool) -> Tensor:
    """The object's mask H×W in an image 3×H×W by GrabCut; without seeds of both kinds, an empty one."""
    import cv2
    import numpy as np

    if not (seeds > 0).any() or not (seeds < 0).any():
        return torch.zeros(seeds.shape, dtype=torch.bool)
    cv2.setRNGSeed(0)
    pixels = np.ascontiguousarray(image.mul(255).round().byte().permute(1, 2, 0).numpy())
    at = seeds.numpy()
    mask = np.select([at > 0, at < 0], [cv2.GC_FGD, cv2.GC_BGD], cv2.GC_PR_BGD).astype(np.uint8)
    colours = fit_color_models(pixels[at != 0], mask[at != 0])
    # First the paper's single cut by the colours of the seeds, then GrabCut's own rounds.
    for rounds, how in ((1, cv2.GC_EVAL_FREEZE_MODEL), (steps, cv2.GC_EVAL)):
        if rounds:
            cv2.grabCut(pixels, mask, UNUSED_RECTANGLE, *colours, rounds, how)
    found = ((mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD)).astype(np.uint8)
    return torch.from_numpy(found if whole else keep_largest_piece(found)).bool()


def fit_color_models(pixels: Any, seed_kinds: Any) -> tuple[Any, Any]:
    """GrabCut's colour models of background and foreground, learned from the seeds alone: M×3 colours and their M kinds."""
    import cv2
    import numpy as np

    background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(
        pixels[None],
        seed_kinds[None].copy(),
        UNUSED_RECTANGLE,
        background,
        foreground,
        0,
        cv2.GC_INIT_WITH_MASK,
    )
    return background, foreground


def keep_largest_piece(mask: Any) -> Any:
    """The largest connected piece of a mask H×W (uint8)."""
    import cv2

    count, pieces, facts, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    return (
        (pieces == 1 + facts[1:, cv2.CC_STAT_AREA].argmax()).astype(mask.dtype)
        if count > 1
        else mask
    )


# ── pictures ──


def draw_segment_row(image: Tensor, mask: Tensor, seeds: Tensor) -> Tensor:
    """Seeds over the gray image, the outlined image, the object over a checkerboard: 1×3×H×(3W and gaps)."""
    gray = 0.25 + 0.6 * image.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    marked = tint_pixels(
        tint_pixels(gray, seeds < 0, BACKGROUND_COLOR, 0.45), seeds > 0, FOREGROUND_COLOR, 1
    )
    return arrange_in_row(
        marked,
        draw_mask_contour(image, mask),
        torch.where(mask, image, make_checkerboard(*mask.shape)),
    )


def tint_pixels(image: Tensor, mask: Tensor, color: Sequence[float], weight: float) -> Tensor:
    """The image 1×3×H×W with a colour laid over the pixels H×W."""
    return torch.where(
        mask, (1 - weight) * image + weight * torch.tensor(color).view(1, 3, 1, 1), image
    )


def draw_mask_contour(image: Tensor, mask: Tensor) -> Tensor:
    """The image with the mask's border in yellow between black lines, which shows on any colours."""
    solid = mask.float()[None, None]
    wide, narrow = (
        torch.nn.functional.max_pool2d(solid, side, 1, side // 2)[0, 0] > 0 for side in (5, 3)
    )
    dark = tint_pixels(image, wide & ~erode_mask(solid), (0, 0, 0), 1)
    return tint_pixels(dark, narrow & ~mask, (1.0, 0.85, 0.0), 1)


def erode_mask(mask: Tensor) -> Tensor:
    """The mask 1×1×H×W without its outermost pixels, H×W; the image's border is none of them."""
    return -torch.nn.functional.max_pool2d(-mask, 3, 1, 1)[0, 0] > 0


def make_checkerboard(height: int, width: int) -> Tensor:
    """Light squares 1×3×H×W that no photograph has."""
    rows, columns = (
        torch.arange(height)[:, None] // CHECKER_SIDE,
        torch.arange(width)[None] // CHECKER_SIDE,
    )
    return (0.9 + 0.1 * ((rows + columns) % 2)).expand(1, 3, -1, -1)


def describe_empty_masks(mask: Tensor, seeds: Tensor) -> str:
    """A note on the images without a mask."""
    flat = [i + 1 for i, one in enumerate(seeds) if not (one > 0).any()]
    empty = [i + 1 for i, one in enumerate(mask) if not one.any() and i + 1 not in flat]
    of = (
        (lambda some: "")
        if len(mask) == 1
        else (lambda some: f" of image {', '.join(map(str, some))}")
    )
    note = (
        f" The map{of(flat)} is the same nearly everywhere, so no pixel is a seed of the object and the mask is empty."
        if flat
        else ""
    )
    return note + (f" GrabCut leaves nothing{of(empty)}." if empty else "")
