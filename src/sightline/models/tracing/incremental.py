"""Exact incremental occlusion: of each covered image, only what its window can reach is recomputed.

The network's own forward pass runs on a stand-in for the batch of covered images. It meets every
operation of torch, whoever calls it. The first pass is a survey: it computes the maps of the clean
image, and learns which region of each map a window changes (see `intervals`). Then each batch of
windows is run as patches of one shape. An operation that has a rule (`patch_rules`) computes its
patches alone. From the first operation without a rule, or whose patches fill nearly the whole
map, that branch of the network goes on with whole maps.

After Nakandala et al. 2019, "Incremental and approximate inference for faster occlusion-based deep
CNN explanations", section 4. Sorting windows into batches by the size of their regions is our own.

Memory: the clean maps twice and the packed weights; of patches and, behind the last rule, whole
maps no more at once than the largest layer takes for as many whole images as may be run at once,
and never more than 64 windows. How many of these are fastest is found by timing the first batches.
"""

import logging
from collections.abc import Callable, Hashable
from math import prod
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from sightline.errors import (
    SightlineError,
    escape_for_display,
    get_first_error_line,
    is_out_of_memory,
)
from sightline.models.model import Model
from sightline.models.tracing.batch_size import (
    choose_batch_size,
    estimate_max_batch,
    split_into_batches,
)
from sightline.models.tracing.occlusion_pass import (
    MIN_SPEEDUP,
    IncrementalUnsupported,
    OcclusionPass,
    StandInDispatch,
    WholeLinearLayers,
    build_full_outputs,
    make_stand_in,
)
from sightline.models.tracing.patch_rules.intervals import (
    ChangedIntervals,
    ChangedRegions,
    IndexArray,
    group_window_positions,
)
from sightline.models.tracing.patch_rules.patches import CleanMap, PatchedMaps
from sightline.models.tracing.windows import OcclusionScores, OcclusionWindows, run_occluded_images

logger = logging.getLogger(__name__)

# Images that the survey pretends to have: a batch of one is viewed in other ways than larger ones.
SURVEY_BATCH_SIZE = 2

# What one more batch costs beyond its multiply-adds, in multiply-adds: for each operation, and for
# each weight that is read.
OPERATION_OVERHEAD = 1e7
WEIGHT_READ_OVERHEAD = 50

# Whole images are run where they cost at most this share of the incremental way, by estimate. Where
# both cost about the same, networks of few multiply-adds and large maps are faster incrementally.
MIN_GAIN = 0.95

# How far the clean image's logits may be from those of a plain run, as a share of the largest.
LOGIT_TOLERANCE = 1e-3
LOW_PRECISION_TOLERANCE = 3e-2

# Most windows that are run at once. Patches are small, so that more are no faster.
MAX_WINDOWS_AT_ONCE = 64

# Why a model was run whole, for each size of the image, set of windows and batch: the survey that
# finds it out takes as long as a few images.
_REFUSALS: WeakKeyDictionary[Model, dict[Hashable, str]] = WeakKeyDictionary()

# Gives the indices of the labels whose scores are asked for, from the clean image's logits
# 1×classes.
ChooseLabels = Callable[[Tensor], Tensor]


def score_occluded_windows(
    model: Model,
    windows: OcclusionWindows,
    choose_labels: ChooseLabels,
    *,
    batch: int | None = None,
    gigabytes: float = 1.0,
    incremental: bool = True,
) -> OcclusionScores:
    """Scores of the labels with each window covered, and with nothing covered.

    Equals running every covered image whole, to rounding. That is what is done where the network
    can't be followed incrementally, or where it would not pay; `fallback` says why.

    `batch` sets how many whole images, or patches in the memory that these take, are run at once;
    None for as many whole images as are fastest and fit into `gigabytes`, or as many patches as
    fit.
    """
    model.probe_at_size_of(windows.image)
    fallback = "incremental=False" if not incremental else ""
    if len(windows.positions) == 1:
        fallback = "there is one window"
    if model.findings.runs_one_by_one:
        fallback = "images are run one by one"
    refusals = _REFUSALS.setdefault(model, {})
    # What fits into a batch decides, too.
    question = (windows.image.shape, windows.side, tuple(windows.positions), batch, gigabytes)
    fallback = fallback or refusals.get(question, "")
    with torch.inference_mode(False), torch.no_grad():
        if not fallback:
            try:
                with model.lock:
                    occlusion = IncrementalOcclusion(model, windows, batch, gigabytes)
                    return occlusion.score_windows(choose_labels)
            except IncrementalUnsupported as reason:
                fallback = str(reason)
                if reason.is_lasting:
                    refusals[question] = fallback
                logger.debug("%s: occluded images are run whole: %s", model.name, fallback)
        # One number for all windows: the last bit of a score depends on it, and the recipe has it.
        batch = batch or choose_batch_size(
            model,
            windows.image,
            gigabytes,
            image_count=1 + len(windows.positions),
            gradients=False,
        )
        scores = score_windows_whole(model, windows, choose_labels, batch)
        return scores._replace(fallback=fallback)


def score_windows_whole(
    model: Model, windows: OcclusionWindows, choose_labels: ChooseLabels, batch: int
) -> OcclusionScores:
    """Scores by running every covered image as a whole, and the clean one among the first."""
    indices: list[int | None] = [None, *range(len(windows.positions))]
    batches = [
        [indices[number] for number in numbers]
        for numbers in split_into_batches(len(indices), batch)
    ]
    label_indices = torch.empty(0)
    scores: list[Tensor] = []
    for logits in run_occluded_images(model, windows, batches):
        if not scores:
            label_indices = choose_labels(logits[:1])
        scores.append(logits[:, label_indices])
    clean_scores, window_scores = torch.cat(scores).split([1, len(windows.positions)])
    return OcclusionScores(label_indices, clean_scores[0], window_scores, 0.0, 1.0, batch=batch)


def estimate_multiply_adds(model: Model, image: Tensor) -> float:
    """About the multiply-adds of one image, those of the linear layers and convolutions."""
    area_ratio = prod(image.shape[-2:]) / prod(model.image_size)
    modules = dict(model.network.named_modules())
    total = 0.0
    for layer in model.layers.values():
        module = modules.get(layer.name.split(":")[0])
        weight = getattr(module, "weight", None)
        if isinstance(module, (nn.Linear, nn.Conv2d)) and isinstance(weight, Tensor):
            total += layer.batch * prod(layer.shape) * weight.numel() / max(1, len(weight))
    return area_ratio * total


def are_same_logits(followed: Tensor, plain: Tensor) -> bool:
    """Whether the clean image's logits are the same to rounding."""
    if followed.shape != plain.shape:
        return False
    is_precise = plain.dtype in (torch.float32, torch.float64)
    tolerance = LOGIT_TOLERANCE if is_precise else LOW_PRECISION_TOLERANCE
    scale = float(plain.detach().float().nan_to_num(posinf=0, neginf=0).abs().max())
    return torch.allclose(
        followed.float(), plain.float(), rtol=0, atol=tolerance * scale, equal_nan=True
    )


class IncrementalOcclusion:
    """The passes over one image."""

    def __init__(
        self, model: Model, windows: OcclusionWindows, batch: int | None, gigabytes: float
    ) -> None:
        self.model = model
        self.windows = windows
        # Whole images that fit into the memory.
        self.image_limit = batch or min(
            MAX_WINDOWS_AT_ONCE,
            estimate_max_batch(model, windows.image, gigabytes, gradients=False),
        )
        prepared = model.normalize(windows.image)
        if not isinstance(prepared, Tensor) or prepared.shape[-2:] != windows.image.shape[-2:]:
            raise IncrementalUnsupported("preprocess makes no image N×C×H×W")
        self.clean_image = CleanMap(prepared)
        self.fill = model.normalize(windows.fill)
        self.check_preprocessing()

    def check_preprocessing(self) -> None:
        """Raises IncrementalUnsupported if a window changes what is made of the rest of the image.

        A blur or a division by the image's own contrast does, which `preprocess` may hold.
        """
        if not self.model.has_preprocess_function:
            return
        last = len(self.windows.positions) - 1
        for index in (0, last // 2, last):
            top, left = self.windows.positions[index]
            rows = slice(top, top + self.windows.side)
            cols = slice(left, left + self.windows.side)
            expected = self.clean_image.tensor.clone()
            expected[..., rows, cols] = self.fill[..., rows, cols]
            prepared = self.model.normalize(self.windows.occlude_windows([index]))
            if not torch.allclose(prepared, expected, rtol=1e-5, atol=1e-6):
                raise IncrementalUnsupported("preprocess changes more than the covered window")

    def score_windows(self, choose_labels: ChooseLabels) -> OcclusionScores:
        """Scores of all windows, windows×labels, and of the clean image.

        Raises IncrementalUnsupported where the network can't be followed, or it would not pay.
        """
        positions = np.array(self.windows.positions)
        survey, survey_logits = self.run_survey(positions)
        if not survey.full_cost:
            raise IncrementalUnsupported("the network has no multiply-adds to save")
        if not survey.layer_costs or survey.speedup < MIN_SPEEDUP:
            raise IncrementalUnsupported(
                f"it would save too little: {survey.speedup:.2f} times fewer multiply-adds; "
                f"whole maps from {survey.first_whole_operation or 'the start'}"
            )
        kept_ratio = survey.largest_map / survey.largest_kept
        max_batch = max(1, min(MAX_WINDOWS_AT_ONCE, int(self.image_limit * kept_ratio)))
        operation_cost = OPERATION_OVERHEAD * len(survey.records)
        batch_overhead = operation_cost + WEIGHT_READ_OVERHEAD * survey.weights_read
        groups = group_window_positions(
            self.windows.positions, survey.layer_costs, batch_overhead, max_batch
        )
        whole_part = survey.full_cost - survey.localized_cost
        window_cost = groups.cost + whole_part * len(positions)
        self.require_gain(survey.full_cost, batch_overhead, window_cost)

        clean_logits = self.model.run(self.windows.image, ["logits"])["logits"]
        # What a network does to a stand-in out of sight, as by a view that it writes to later, is
        # wrong without the windows as well.
        if not are_same_logits(survey_logits, clean_logits):
            raise IncrementalUnsupported("the network gives other scores where it is followed")
        label_indices = choose_labels(clean_logits)
        clean_scores = clean_logits[0, label_indices]
        scores = clean_scores.new_empty(len(positions), len(label_indices))
        spent_cost = survey.full_cost
        localized_cost = 0.0
        for indices in groups.batches:
            batch_pass = OcclusionPass(survey.records, len(indices))
            regions = self.locate_window_regions(*positions[indices].T)
            patches = self.windows.crop_windows(indices, self.fill)
            start_maps = PatchedMaps(self.clean_image, regions, patches)
            logits = self.compute_logits(batch_pass, start_maps)
            if bool(logits.isnan().any()):  # an infinite number less another one, or the network's
                raise IncrementalUnsupported("a covered image has NaN", is_lasting=False)
            scores[indices] = logits[:, label_indices]
            spent_cost += batch_pass.spent_cost * len(indices)
            localized_cost += batch_pass.localized_cost * len(indices)
        whole_cost = survey.full_cost * len(positions)
        localized_share = localized_cost / whole_cost
        speedup_bound = whole_cost / spent_cost
        return OcclusionScores(label_indices, clean_scores, scores, localized_share, speedup_bound)

    def require_gain(self, full_cost: float, batch_overhead: float, window_cost: float) -> None:
        """Raises IncrementalUnsupported where running every image whole takes no longer.

        All costs are in multiply-adds: of one whole image, of a batch beyond its images, and of all
        windows with their batches.
        """
        whole_cost = full_cost * (1 + len(self.windows.positions))
        clean_image_count = SURVEY_BATCH_SIZE + 1  # the survey's, and the one that checks it
        incremental_cost = clean_image_count * full_cost + batch_overhead + window_cost
        if whole_cost <= MIN_GAIN * incremental_cost:
            raise IncrementalUnsupported(
                f"it would save too little: {len(self.windows.positions)} windows take as long as "
                "whole images, or longer"
            )

    def run_survey(self, positions: IndexArray) -> tuple[OcclusionPass, Tensor]:
        """The pass that computes the clean maps and the regions of every distinct top and left.

        Returns the clean image's logits 1×classes as well. Raises IncrementalUnsupported as soon as
        it is clear that it would not pay.
        """
        network_cost = estimate_multiply_adds(self.model, self.windows.image)
        survey = OcclusionPass({}, SURVEY_BATCH_SIZE, survey=True, network_cost=network_cost)
        regions = self.locate_window_regions(np.unique(positions[:, 0]), np.unique(positions[:, 1]))
        logits = self.compute_logits(survey, PatchedMaps(self.clean_image, regions))
        return survey, logits[:1]

    def locate_window_regions(self, tops: IndexArray, lefts: IndexArray) -> ChangedRegions:
        """The windows themselves as regions of the image."""
        height, width = self.clean_image.tensor.shape[-2:]
        side = self.windows.side
        return ChangedRegions(
            ChangedIntervals(tops, np.full_like(tops, side), height),
            ChangedIntervals(lefts, np.full_like(lefts, side), width),
        )

    def compute_logits(self, occlusion_pass: OcclusionPass, start_maps: PatchedMaps) -> Tensor:
        """Logits of a batch, windows×classes.

        Whatever the network raises on the stand-in, which is no ordinary tensor, ends the attempt.
        If the network itself is at fault, the ordinary run says so.
        """
        head = self.model.head
        if head.layers:
            raise IncrementalUnsupported("the target reads a layer")
        stand_in = make_stand_in(occlusion_pass, (), patched_maps=start_maps)
        image_shape = (occlusion_pass.image_count, *self.windows.image.shape[1:])
        try:
            with WholeLinearLayers(), StandInDispatch():
                output = self.model.call_network(stand_in, occlusion_pass.image_count)
            selected = build_full_outputs(head.select(output))
            return head.read_scores(selected, {}, image_shape)
        except (IncrementalUnsupported, SightlineError):
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            operation = occlusion_pass.last_operation or "the network"
            reason = escape_for_display(get_first_error_line(error) or type(error).__name__)
            raise IncrementalUnsupported(
                f"{operation} does not take a stand-in ({reason})"
            ) from error
