"""Segmentation without supervision: a saliency map tells GrabCut where the object is.

Simonyan 2013, section 3.2. Nobody outlined an object for the network, which learned from class
labels alone. GrabCut is Rother 2004.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.images.plotting.captioned_rows import FigureRow
from sightline.images.plotting.figures import PictureRows
from sightline.images.plotting.maps import arrange_in_row, make_contact_sheet
from sightline.images.transforms import blur_image
from sightline.methods.attribution.cam import gradcam
from sightline.methods.attribution.saliency import saliency
from sightline.models.heads.labels import ClassChoice
from sightline.models.heads.target_text import TargetChoice
from sightline.models.model import Model
from sightline.registry.method import AttributionSpec, register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.result import Result

SeedSource = Literal["saliency", "smoothgrad", "gradcam"]

FOREGROUND_COLOR = (1.0, 0.2, 0.1)
BACKGROUND_COLOR = (0.15, 0.4, 1.0)
CONTOUR_COLOR = (1.0, 0.85, 0.0)

UNUSED_RECTANGLE = (0, 0, 0, 0)  # GrabCut takes a rectangle; with a mask it is ignored

COLOR_MODEL_SIZE = (1, 65)  # five Gaussians of 13 numbers, as OpenCV stores them

SEGMENT_TILE_SIDE = 256  # pixels

CHECKER_SIDE = 8  # pixels of a checkerboard's square


@register_method(
    chapter="analytical",
    title="Segmentation without supervision",
    question="Does the network know the object's outline, though it was only told the class?",
    reading="Red are the pixels that the score depends on most, blue those it hardly depends on. "
    "From their colours GrabCut learns what object and background look like, and cuts the image "
    "where the colours change. Beside it the outline of the object, and the object cut out.",
    caution="The network only gives the seeds; the outline comes from the colours. It is good "
    "where the object differs in colour from its surroundings. The seeds lie on what the network "
    "responds to, which may be a part of the object or not the object at all.",
    tour_runs=({"source": "smoothgrad"},),
    attribution=AttributionSpec("map", "source", costly_kinds=("smoothgrad",)),
)
def segment(
    model: Model,
    image: Tensor,
    *,
    label: ClassChoice = "top",
    target: TargetChoice | None = None,
    source: SeedSource = "saliency",
    foreground: Annotated[float, ValueRange(0.5, 1)] = 0.95,
    background: Annotated[float, ValueRange(0, 0.5)] = 0.3,
    smooth: Annotated[float, ValueRange(0, 0.2)] = 0.01,
    steps: Annotated[int, ValueRange(0, 50)] = 5,
    whole: bool = False,
) -> Result:
    """Cuts the object of a class out of the image with GrabCut, seeded by the class's saliency map.

    `values["mask"]`, N×H×W, is True on the object; `values["attribution"]` is the same as float32,
    0 or 1. `values["share"]`, N, is the object's share of the pixels. `values["seeds"]`, N×H×W
    (int8), is 1 at foreground seeds, -1 at background seeds and 0 elsewhere; `values["map"]`,
    N×H×W, is the unscaled saliency map that they come from. `values["label"]`, N, holds the class
    indices. A constant map has no strongest pixels: its mask is empty.

    Args:
        source: Map that gives the seeds: "saliency" (|gradient|, largest over the channels),
            "smoothgrad" (the same of the mean over noisy copies), "gradcam" (of the last
            convolution, enlarged).
        foreground: Quantile of the map from which on pixels are foreground seeds.
        background: Quantile of the map up to which pixels are background seeds.
        smooth: Standard deviation of a Gaussian that blurs the map first, as a share of the short
            side; 0 for the raw map.
        steps: Rounds in which GrabCut refits the colours to its last cut; 0 for a single cut by the
            seeds' colours.
        whole: Keep every connected piece of the cut instead of only the largest one.
    """
    model = model.with_target(target)
    image = image.cpu()
    seed_map, index = compute_seed_map(model, image, label, source)
    short_side = min(seed_map.shape[-2:])
    sigma = smooth * short_side
    seed_map = blur_seed_map(seed_map.cpu().nan_to_num(0), sigma)
    seeds = torch.stack([select_seeds(plane, foreground, background) for plane in seed_map])
    picture = model.to_picture(image)
    mask = cut_objects(picture, seeds, steps, whole)
    attribution = mask.float()
    share = attribution.flatten(1).mean(1)

    panel_rows: list[Tensor] = []
    for single_image, image_mask, image_seeds in zip(picture, mask, seeds, strict=True):
        panel_rows.append(draw_segment_row(single_image[None], image_mask, image_seeds))
    panel = make_contact_sheet(torch.cat(panel_rows), columns=1, gap=6)
    label_names = ", ".join(model.labels[i] for i in index.tolist())
    blur_note = f" blurred over {sigma:.2g} pixels" if sigma else ""
    caption = (
        f"Seeds from the {source} map of {label_names}{blur_note}: red from the {foreground:.0%} "
        f"quantile on, blue up to the {background:.0%} quantile; the outline of the object that "
        f"GrabCut finds; and the object cut out: {float(share[0]):.0%} of the pixels."
        f"{describe_empty_masks(mask, seeds)}"
    )
    values = {
        "attribution": attribution,
        "mask": mask,
        "share": share,
        "seeds": seeds,
        "map": seed_map,
        "label": index,
    }
    rows = make_segment_rows(picture[:1], mask[0], seeds[0])
    return Result({"segment": panel}, values, {"segment": caption}, figures={"segment": rows})


# ── seeds ──


def compute_seed_map(
    model: Model, image: Tensor, label: ClassChoice, source: SeedSource
) -> tuple[Tensor, Tensor]:
    """The saliency map N×H×W that gives the seeds, and the class indices, N."""
    # The paper averages the maps of ten crops and mirror images; here the map is of the image
    # alone.
    if source == "gradcam":
        tensors = gradcam(model, image, label=label).tensors
        return tensors["map"], tensors["label"]
    kind = "gradient" if source == "saliency" else "smoothgrad"
    tensors = saliency(model, image, label=label, kind=kind).tensors
    return tensors["saliency"], tensors["label"]


def blur_seed_map(seed_map: Tensor, sigma: float) -> Tensor:
    """Maps N×H×W under a Gaussian blur of deviation `sigma` in pixels, mirrored at the border."""
    # The paper takes the quantiles of the raw map. A single noisy pixel would then be a seed that
    # GrabCut has to respect: a hole in the object, or a speck of it elsewhere.
    # Each by itself, so that the last bits, and with them the seeds, don't depend on the batch.
    blurred = [blur_image(plane[None, None], sigma)[0, 0] for plane in seed_map]
    return torch.stack(blurred)


def select_seeds(seed_map: Tensor, foreground: float, background: float) -> Tensor:
    """Seeds H×W (int8) of a map H×W: 1 from the upper quantile on, -1 up to the lower, else 0."""
    import numpy as np

    values = seed_map.double().numpy()
    low, high = np.quantile(values, (background, foreground))
    # The paper has > and <. Maps cut off at zero have many equal values: with >= and <= these are
    # seeds as well. A value equal to both quantiles is background.
    is_background = values <= low
    is_foreground = (values >= high) & ~is_background
    return torch.from_numpy(is_foreground.astype(np.int8) - is_background.astype(np.int8))


# ── cut ──


def cut_objects(image: Tensor, seeds: Tensor, steps: int, whole: bool) -> Tensor:
    """Object masks N×H×W of images N×3×H×W and their seeds N×H×W."""
    # OpenCV's random state belongs to the thread: in a thread of its own, the caller's is
    # untouched.
    with ThreadPoolExecutor(1) as executor:
        masks = executor.map(
            lambda pixels, pixel_seeds: run_grabcut(pixels, pixel_seeds, steps, whole), image, seeds
        )
        return torch.stack(list(masks))


def run_grabcut(image: Tensor, seeds: Tensor, steps: int, whole: bool) -> Tensor:
    """The object's mask H×W in an image 3×H×W by GrabCut; empty without seeds of both kinds."""
    import cv2
    import numpy as np

    if not (seeds > 0).any() or not (seeds < 0).any():
        return torch.zeros(seeds.shape, dtype=torch.bool)
    cv2.setRNGSeed(0)
    channels_last = image.mul(255).round().byte().permute(1, 2, 0)
    pixels = np.ascontiguousarray(channels_last.numpy())

    seed_kinds = seeds.numpy()
    mask = np.full(seed_kinds.shape, cv2.GC_PR_BGD, dtype=np.uint8)
    mask[seed_kinds > 0] = cv2.GC_FGD
    mask[seed_kinds < 0] = cv2.GC_BGD

    is_seed = seed_kinds != 0
    color_models = fit_color_models(pixels[is_seed], mask[is_seed])
    # First the paper's single cut by the colours of the seeds, then GrabCut's own rounds.
    cv2.grabCut(pixels, mask, UNUSED_RECTANGLE, *color_models, 1, cv2.GC_EVAL_FREEZE_MODEL)
    if steps:
        cv2.grabCut(pixels, mask, UNUSED_RECTANGLE, *color_models, steps, cv2.GC_EVAL)

    is_foreground = (mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD)
    object_mask = is_foreground.astype(np.uint8)
    if not whole:
        object_mask = keep_largest_piece(object_mask)
    return torch.from_numpy(object_mask).bool()


def fit_color_models(pixels: Any, seed_kinds: Any) -> tuple[Any, Any]:
    """GrabCut's colour models of background and foreground, fitted to the seeds alone.

    `pixels` are the colours M×3 of the seeds and `seed_kinds` their M kinds (uint8 arrays).
    """
    import cv2
    import numpy as np

    background_model = np.zeros(COLOR_MODEL_SIZE)
    foreground_model = np.zeros(COLOR_MODEL_SIZE)
    cv2.grabCut(
        pixels[None],
        seed_kinds[None].copy(),
        UNUSED_RECTANGLE,
        background_model,
        foreground_model,
        0,
        cv2.GC_INIT_WITH_MASK,
    )
    return background_model, foreground_model


def keep_largest_piece(mask: Any) -> Any:
    """The largest connected piece of a mask H×W (uint8 array)."""
    import cv2

    count, pieces, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    if count == 1:  # piece 0 is the background
        return mask
    largest = 1 + statistics[1:, cv2.CC_STAT_AREA].argmax()
    return (pieces == largest).astype(mask.dtype)


# ── figure ──


def draw_segment_row(image: Tensor, mask: Tensor, seeds: Tensor) -> Tensor:
    """Seeds over the gray image, the outlined image, the object over a checkerboard, in a row."""
    return arrange_in_row(*list_segment_pictures(image, mask, seeds))


def make_segment_rows(image: Tensor, mask: Tensor, seeds: Tensor) -> PictureRows:
    """The same three pictures, each with what it shows."""
    pictures = list_segment_pictures(image, mask, seeds)
    captions = ["the seeds", "the outline found", "the object"]
    return PictureRows([FigureRow("", pictures, captions)], SEGMENT_TILE_SIDE)


def list_segment_pictures(image: Tensor, mask: Tensor, seeds: Tensor) -> list[Tensor]:
    """Seeds over the gray image, the outlined image, the object over a checkerboard."""
    luminance = image.mean(1, keepdim=True)
    gray = 0.25 + 0.6 * luminance.expand(-1, 3, -1, -1)
    marked = tint_pixels(gray, seeds < 0, BACKGROUND_COLOR, 0.45)
    marked = tint_pixels(marked, seeds > 0, FOREGROUND_COLOR, 1)

    outlined = draw_mask_contour(image, mask)
    cutout = torch.where(mask, image, make_checkerboard(*mask.shape))
    return [marked, outlined, cutout]


def tint_pixels(image: Tensor, mask: Tensor, color: Sequence[float], weight: float) -> Tensor:
    """The image 1×3×H×W with a colour laid over the pixels of a mask H×W."""
    tint = torch.tensor(color).view(1, 3, 1, 1)
    tinted = (1 - weight) * image + weight * tint
    return torch.where(mask, tinted, image)


def draw_mask_contour(image: Tensor, mask: Tensor) -> Tensor:
    """The image with the mask's border in yellow between black lines, visible on any colours."""
    outer_line = dilate_mask(mask, 5) & ~erode_mask(mask, 3)
    inner_line = dilate_mask(mask, 3) & ~mask
    outlined = tint_pixels(image, outer_line, (0, 0, 0), 1)
    return tint_pixels(outlined, inner_line, CONTOUR_COLOR, 1)


def dilate_mask(mask: Tensor, side: int) -> Tensor:
    """The mask H×W grown to every pixel whose square of odd `side` meets it."""
    plane = mask.float()[None, None]
    dilated = F.max_pool2d(plane, side, stride=1, padding=side // 2)
    return dilated[0, 0] > 0


def erode_mask(mask: Tensor, side: int) -> Tensor:
    """The mask H×W without the pixels whose square of odd `side` leaves it, inside the image."""
    return ~dilate_mask(~mask, side)


def make_checkerboard(height: int, width: int) -> Tensor:
    """Light squares 1×3×H×W that no photograph has."""
    row_numbers = torch.arange(height)[:, None] // CHECKER_SIDE
    column_numbers = torch.arange(width)[None] // CHECKER_SIDE
    is_light = (row_numbers + column_numbers) % 2
    return (0.9 + 0.1 * is_light).expand(1, 3, -1, -1)


def describe_empty_masks(mask: Tensor, seeds: Tensor) -> str:
    """A note on the images whose mask is empty."""
    unseeded = [i + 1 for i in range(len(mask)) if not (seeds[i] > 0).any()]
    cut_away = [i + 1 for i in range(len(mask)) if not mask[i].any() and i + 1 not in unseeded]

    def name_images(numbers: Sequence[int]) -> str:
        if len(mask) == 1:
            return ""
        return f" of image {', '.join(map(str, numbers))}"

    note = ""
    if unseeded:
        note += (
            f" The map{name_images(unseeded)} is the same nearly everywhere, so no pixel is a "
            "foreground seed and the mask is empty."
        )
    if cut_away:
        note += f" GrabCut leaves nothing{name_images(cut_away)}."
    return note
