"""Texture optimization (Kwatra 2005, Wexler 2007), with nearest patches found by PatchMatch
(Barnes 2009)."""

import math
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.images.transforms import blur_image
from sightline.methods.texture.efros_leung import pad_texture
from sightline.methods.texture.wei_levoy import build_pyramid, enlarge_preview
from sightline.registry.progress import Callback, Step

# Penalty of a patch used as often as the average, as a share of the typical distance.
REUSE_PENALTY = 0.3

MAX_LEVELS = 5

PROPAGATION_STEPS = (8, 4, 2, 1)  # pixels


@torch.no_grad()
def optimize_texture(
    exemplar: Tensor,
    size: tuple[int, int],
    *,
    window: int,
    generator: torch.Generator,
    rounds: int = 6,
    callback: Callback | None = None,
) -> tuple[Tensor, float]:
    """A picture C×H×W whose patches all look like patches of the exemplar C×h×w.

    Works from coarse to fine. In each round PatchMatch finds the nearest exemplar patch of every
    patch, then every pixel becomes the weighted mean of what the patches over it propose. In the
    last round of a level each pixel takes the proposed color nearest to that mean, so that nothing
    is blurred (departure: the papers show the mean). The picture is a torus, so it always tiles.

    Gives the picture and the mean squared difference between its patches and their matches.
    """
    pyramid, sizes = build_pyramid(exemplar, size, min_side=3 * window, max_levels=MAX_LEVELS)
    total = rounds * len(pyramid)
    step_index = 0
    field = None
    picture = exemplar
    error = 0.0
    for source, level_size in zip(reversed(pyramid), reversed(sizes), strict=True):
        search = PatchMatch(source, level_size, window, generator)
        field = search.draw_random_field() if field is None else search.upsample_field(field)
        picture, _ = search.vote_colors(field, None)
        for round_index in range(rounds):
            field, distance = search.improve_field(field, picture)
            mean_colors, nearest_colors = search.vote_colors(field, distance)
            picture = nearest_colors if round_index == rounds - 1 else mean_colors
            error = float(search.measure_error(field, picture))
            step_index += 1
            if callback:
                preview = enlarge_preview(picture, size)
                if callback(Step(step_index, total, torch.tensor([error]), preview)):
                    return preview[0], error
    return picture, error


class PatchMatch:
    """Nearest patches at one level, from an output of this size to a source C×h×w.

    A field H×W gives for each output pixel, as the center of a patch, the index of a source patch.
    Source patches are indexed row by row, by their top left corner.
    """

    def __init__(
        self, source: Tensor, size: tuple[int, int], window: int, generator: torch.Generator
    ) -> None:
        self.source = source
        self.size = size
        self.window = window
        self.generator = generator
        self.rows = source.shape[-2] - window + 1
        self.columns = source.shape[-1] - window + 1
        self.table = F.unfold(source[None], window)[0].T.contiguous()
        self.reuse_penalty = torch.zeros(len(self.table))

    def draw_random_field(self) -> Tensor:
        """A field of blocks, two windows wide, from random positions of the source.

        Inside a block the patches fit at once. Departure: Kwatra 2005 starts from single random
        patches. Their mean is gray, and what grows from gray stays dull.
        """
        height, width = self.size
        side = 2 * self.window

        # The middle of each block in the source.
        block_grid = (math.ceil(height / side), math.ceil(width / side))
        block_rows = torch.randint(self.rows, block_grid, generator=self.generator)
        block_columns = torch.randint(self.columns, block_grid, generator=self.generator)

        rows = torch.arange(height)[:, None]
        columns = torch.arange(width)
        block_index = (rows // side, columns // side)
        source_rows = block_rows[block_index] + rows % side - side // 2
        source_columns = block_columns[block_index] + columns % side - side // 2
        return self.clamp_patch_index(source_rows, source_columns)

    def upsample_field(self, field: Tensor) -> Tensor:
        """The field of the next coarser level, at this level's size."""
        height, width = self.size
        coarse_width = math.ceil(self.source.shape[-1] / 2)
        coarse_columns = max(1, coarse_width - self.window + 1)

        repeated = field.repeat_interleave(2, 0).repeat_interleave(2, 1)
        repeated = repeated[:height, :width]
        coarse_source_rows = repeated // coarse_columns
        coarse_source_columns = repeated % coarse_columns

        # Neighboring output pixels take neighboring patches.
        is_odd_row = torch.arange(height)[:, None] % 2
        is_odd_column = torch.arange(width) % 2
        source_rows = 2 * coarse_source_rows + is_odd_row
        source_columns = 2 * coarse_source_columns + is_odd_column
        return self.clamp_patch_index(source_rows, source_columns)

    def clamp_patch_index(self, row: Tensor, column: Tensor) -> Tensor:
        """The index of the patch whose corner is nearest to this position."""
        clamped_row = row.clamp(0, self.rows - 1)
        clamped_column = column.clamp(0, self.columns - 1)
        return clamped_row * self.columns + clamped_column

    def extract_patches(self, picture: Tensor) -> Tensor:
        """The output's patches around each pixel, on the torus, as rows: HW×Cw²."""
        radius = self.window // 2
        padded = pad_texture(picture[None], radius, tileable=True)
        return F.unfold(padded, self.window)[0].T

    def measure_error(self, field: Tensor, picture: Tensor) -> Tensor:
        """Mean squared difference between the output's patches and their matches."""
        patches = self.extract_patches(picture)
        matches = self.table[field.flatten()]
        return (patches - matches).square().mean()

    def improve_field(
        self, field: Tensor, picture: Tensor, sweeps: int = 3
    ) -> tuple[Tensor, Tensor]:
        """Improves the matches by propagation and random search, all pixels at once.

        Matches propagate from neighbors 8, 4, 2 and 1 pixels away; then candidates are drawn
        around each match, in ever smaller radii. Departure: Barnes 2009 scans to and fro, one
        pixel at a time. Gives the field and its distances, H×W each.
        """
        patches = self.extract_patches(picture)
        distance = self.measure_distances(patches, field)
        for _ in range(sweeps):
            self.penalize_reuse(patches, field)
            distance = self.measure_distances(patches, field)
            for step in PROPAGATION_STEPS:
                for dy, dx in ((step, 0), (-step, 0), (0, step), (0, -step)):
                    neighbor_match = field.roll((dy, dx), (0, 1))
                    rows = neighbor_match // self.columns + dy
                    columns = neighbor_match % self.columns + dx
                    candidate = self.clamp_patch_index(rows, columns)
                    field, distance = self.keep_nearer(patches, field, distance, candidate)

            radius = float(max(self.rows, self.columns))
            while radius >= 1:
                uniform = 2 * torch.rand(2, *self.size, generator=self.generator) - 1
                row_jump, column_jump = (uniform * radius).round().long()
                rows = field // self.columns + row_jump
                columns = field % self.columns + column_jump
                candidate = self.clamp_patch_index(rows, columns)
                field, distance = self.keep_nearer(patches, field, distance, candidate)
                radius /= 2
        return field, distance

    def penalize_reuse(self, patches: Tensor, field: Tensor) -> None:
        """Sets a penalty for source patches used more than average, and those around them.

        Departure: it avoids repetition, as in Kaspar 2015.
        """
        matches = field.flatten()
        use_counts = torch.bincount(matches, minlength=len(self.table)).float()
        use_counts = use_counts.view(1, 1, self.rows, self.columns)
        blurred_counts = blur_image(use_counts, self.window / 2).flatten()
        relative_use = blurred_counts * len(self.table) / field.numel()

        distances = (patches - self.table[matches]).square().sum(1)
        self.reuse_penalty = REUSE_PENALTY * distances.median() * relative_use

    def measure_distances(self, patches: Tensor, field: Tensor) -> Tensor:
        """Squared difference between each output patch and its match, plus the penalty: H×W."""
        matches = field.flatten()
        distance = (patches - self.table[matches]).square().sum(1)
        penalized = distance + self.reuse_penalty[matches]
        return penalized.view(self.size)

    def keep_nearer(
        self, patches: Tensor, field: Tensor, distance: Tensor, candidate: Tensor
    ) -> tuple[Tensor, Tensor]:
        """For each pixel the nearer of its match and a candidate.

        Only pixels whose candidate differs from their match are compared.
        """
        field = field.flatten().clone()
        distance = distance.flatten().clone()
        candidate = candidate.flatten()

        pixels = (field != candidate).nonzero()[:, 0]
        candidate = candidate[pixels]
        candidate_distance = (patches[pixels] - self.table[candidate]).square_().sum(1)
        candidate_distance = candidate_distance + self.reuse_penalty[candidate]

        is_nearer = candidate_distance < distance[pixels]
        nearer_pixels = pixels[is_nearer]
        field[nearer_pixels] = candidate[is_nearer]
        distance[nearer_pixels] = candidate_distance[is_nearer]
        return field.view(self.size), distance.view(self.size)

    def vote_colors(self, field: Tensor, distance: Tensor | None) -> tuple[Tensor, Tensor]:
        """The colors that the patches over each pixel propose: mean and nearest, C×H×W each.

        The first is their weighted mean, the second the proposed color nearest to it. Without
        distances all weights are equal. With them the weights are exp(−distance/2σ²), where σ² is
        the median distance (Wexler 2007, section 3.2), normalized over the pixel's patches: where
        all patches are far, the weights would otherwise vanish and leave black.
        """
        exponent = torch.zeros(self.size)
        if distance is not None:
            exponent = -distance / (2 * distance.median().clamp_min(1e-6))
        radius = self.window // 2
        center_rows = field // self.columns + radius
        center_columns = field % self.columns + radius

        proposals: list[Tensor] = []
        exponents: list[Tensor] = []
        offsets = range(-radius, radius + 1)
        for dy, dx in product(offsets, offsets):
            # The patch centered (dy, dx) pixels above and left covers this pixel at (dy, dx).
            rows = center_rows.roll((dy, dx), (0, 1)) + dy
            columns = center_columns.roll((dy, dx), (0, 1)) + dx
            proposals.append(self.source[:, rows, columns])
            exponents.append(exponent.roll((dy, dx), (0, 1)))

        colors = torch.stack(proposals, 1)  # C×w²×H×W
        weights = torch.stack(exponents).softmax(0)
        mean = (colors * weights).sum(1)

        nearest = (colors - mean[:, None]).square().sum(0).argmin(0)
        nearest = nearest.expand(len(colors), 1, *self.size)
        nearest_colors = colors.gather(1, nearest)[:, 0]
        return mean, nearest_colors
