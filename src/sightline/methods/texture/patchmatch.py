"""Texture optimization (Kwatra 2005, Wexler 2007) whose nearest patches are found by PatchMatch (Barnes 2009)."""

import math
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.images.transforms import blur_image
from sightline.methods.texture.efros_leung import pad_texture
from sightline.methods.texture.wei_levoy import downsample_level
from sightline.registry.progress import Callback, Step

REUSE_PENALTY = 0.3  # of the typical distance, for a patch that is used as often as the average


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
    """A picture 3×H×W all of whose patches look like patches of the exemplar 3×h×w; and the mean squared difference to them.

    Coarse to fine; in each round PatchMatch finds every patch's nearest one in the exemplar, then every pixel becomes the
    weighted mean of what the patches over it say. At the end each takes the exemplar's pixel nearest to that mean, so that
    nothing is blurred. The output is a torus, so it always tiles.
    """
    pyramid, sizes = [exemplar], [size]
    while min(*pyramid[-1].shape[-2:], *sizes[-1]) // 2 >= 3 * window and len(pyramid) < 5:
        pyramid.append(downsample_level(pyramid[-1]))
        sizes.append((math.ceil(sizes[-1][0] / 2), math.ceil(sizes[-1][1] / 2)))
    total, done = rounds * len(pyramid), 0
    field, picture, cost = None, exemplar, 0.0
    for source, shape in zip(reversed(pyramid), reversed(sizes), strict=True):
        search = PatchMatch(source, shape, window, generator)
        field = search.draw_random_field() if field is None else search.upsample_field(field)
        picture, _ = search.vote_colors(field, None)
        for number in range(rounds):
            field, distance = search.improve_field(field, picture)
            picture, sharp = search.vote_colors(field, distance)
            picture = sharp if number == rounds - 1 else picture
            done, cost = done + 1, float(search.measure_error(field, picture))
            shown = F.interpolate(picture[None], size=size, mode="nearest")
            if callback and callback(Step(done, total, torch.tensor([cost]), shown)):
                return shown[0], cost
    return picture, cost


class PatchMatch:
    """Nearest patches of one level. A field gives for each output pixel the exemplar's patch, by the index of its corner: H×W."""

    def __init__(
        self, source: Tensor, size: tuple[int, int], window: int, generator: torch.Generator
    ) -> None:
        self.source, self.size, self.window, self.generator = source, size, window, generator
        self.rows, self.columns = source.shape[-2] - window + 1, source.shape[-1] - window + 1
        self.table = F.unfold(source[None], window)[0].T.contiguous()
        self.reuse_penalty = torch.zeros(len(self.table))

    def draw_random_field(self) -> Tensor:
        """Blocks of two windows' side from anywhere: their insides fit at once. (The mean of single patches from anywhere is gray, and what
        grows out of gray stays dull.)"""
        side = 2 * self.window
        counts = [-(-length // side) for length in self.size]
        drawn = (
            torch.randint(most, tuple(counts), generator=self.generator)
            for most in (self.rows, self.columns)
        )
        across = [torch.arange(length) for length in self.size]
        row, column = (one[across[0][:, None] // side, across[1] // side] for one in drawn)
        return self.clamp_patch_index(
            row + across[0][:, None] % side - side // 2, column + across[1] % side - side // 2
        )

    def upsample_field(self, field: Tensor) -> Tensor:
        """The field of the coarser level, at twice the size."""
        columns = max(1, -(-self.source.shape[-1] // 2) - self.window + 1)
        fine = field.repeat_interleave(2, 0)[: self.size[0]].repeat_interleave(2, 1)[
            :, : self.size[1]
        ]
        odd = (torch.arange(self.size[0]) % 2)[:, None], torch.arange(self.size[1]) % 2
        return self.clamp_patch_index(2 * (fine // columns) + odd[0], 2 * (fine % columns) + odd[1])

    def clamp_patch_index(self, row: Tensor, column: Tensor) -> Tensor:
        """The patch with its corner there, or the nearest that lies inside."""
        return row.clamp(0, self.rows - 1) * self.columns + column.clamp(0, self.columns - 1)

    def extract_patches(self, picture: Tensor) -> Tensor:
        """The output's patches around each pixel as rows, on the torus: HW×3w²."""
        return F.unfold(pad_texture(picture[None], self.window // 2, tileable=True), self.window)[
            0
        ].T

    def measure_error(self, field: Tensor, picture: Tensor) -> Tensor:
        """Mean squared difference between the output's patches and their matches."""
        return (self.extract_patches(picture) - self.table[field.flatten()]).square().mean()

    def improve_field(
        self, field: Tensor, picture: Tensor, sweeps: int = 3
    ) -> tuple[Tensor, Tensor]:
        """Propagation from neighbours 8, 4, 2, 1 pixels away, all pixels at once, then random search in ever smaller circles."""
        asked = self.extract_patches(picture)
        distance = self.measure_distances(asked, field)
        for _ in range(sweeps):
            self.penalize_reuse(asked, field)
            distance = self.measure_distances(asked, field)
            for step in (8, 4, 2, 1):
                for dy, dx in ((step, 0), (-step, 0), (0, step), (0, -step)):
                    moved = field.roll((dy, dx), (0, 1))
                    field, distance = self.keep_nearer(
                        asked,
                        field,
                        distance,
                        self.clamp_patch_index(
                            moved // self.columns + dy, moved % self.columns + dx
                        ),
                    )
            radius = float(max(self.rows, self.columns))
            while radius >= 1:
                jump = (
                    ((2 * torch.rand(2, *self.size, generator=self.generator) - 1) * radius)
                    .round()
                    .long()
                )
                other = self.clamp_patch_index(
                    field // self.columns + jump[0], field % self.columns + jump[1]
                )
                field, distance = self.keep_nearer(asked, field, distance, other)
                radius /= 2
        return field, distance

    def penalize_reuse(self, patches: Tensor, field: Tensor) -> None:
        """Makes the patches around those that are used more than their share look farther away, against repetition (Kaspar 2015)."""
        used = (
            torch.bincount(field.flatten(), minlength=len(self.table))
            .view(1, 1, self.rows, self.columns)
            .float()
        )
        used = blur_image(used, self.window / 2) * len(self.table) / field.numel()
        typical = (patches - self.table[field.flatten()]).square().sum(1).median()
        self.reuse_penalty = REUSE_PENALTY * typical * used.flatten()

    def measure_distances(self, patches: Tensor, field: Tensor) -> Tensor:
        """Squared differences between each output patch and its match: H×W."""
        return (
            (patches - self.table[field.flatten()]).square().sum(1)
            + self.reuse_penalty[field.flatten()]
        ).view(self.size)

    def keep_nearer(
        self, patches: Tensor, field: Tensor, distance: Tensor, candidate: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Each pixel keeps the nearer of two patches. Where they are one and the same, as inside what fits already, there is nothing to ask."""
        field, distance = field.flatten().clone(), distance.flatten().clone()
        differing = (field != candidate.flatten()).nonzero()[:, 0]
        tried = candidate.flatten()[differing]
        found = (patches[differing] - self.table[tried]).square_().sum(1) + self.reuse_penalty[
            tried
        ]
        closer = found < distance[differing]
        field[differing[closer]], distance[differing[closer]] = tried[closer], found[closer]
        return field.view(self.size), distance.view(self.size)

    def vote_colors(self, field: Tensor, distance: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the patches over each pixel say: their weighted mean, and the one colour of theirs that is nearest to it.

        Near patches weigh more (Wexler 2007, section 3.2): by exp(-distance/2σ²), relative to the nearest one over the pixel, since where
        all are far they would weigh nothing and leave black.
        """
        exponent = (
            torch.zeros(self.size)
            if distance is None
            else -distance / (2 * distance.median().clamp_min(1e-6))
        )
        reach = range(-(self.window // 2), self.window // 2 + 1)
        rows, columns = (
            field // self.columns + self.window // 2,
            field % self.columns + self.window // 2,
        )
        said, exponents = list[Tensor](), list[Tensor]()
        for shift in product(reach, reach):
            row, column, told = (values.roll(shift, (0, 1)) for values in (rows, columns, exponent))
            said.append(self.source[:, row + shift[0], column + shift[1]])
            exponents.append(told)
        colors = torch.stack(said, 1)
        mean = (colors * torch.stack(exponents).softmax(0)).sum(1)
        nearest = (colors - mean[:, None]).square().sum(0).argmin(0)
        return mean, colors.gather(1, nearest.expand(3, 1, *self.size))[:, 0]
