"""How a decoder for any style is trained (Huang 2017, section 5), as a lesson that `training` runs."""

from typing import Any

import torch
from torch import Tensor

from .. import image as images
from ..errors import SightlineError
from ..model import Model
from ..objective import tv
from ..perceptual import content_loss
from .adain import AnyStyle, adain, statistics
from .files import write_any
from .lessons import Plan, rowed, shifted
from .photos import Photos, kept

SAME = 4  # of that many pairs of photograph and style, one is a photograph and itself
SAME_WEIGHT = 20.0
WARM = 0.2  # of the steps; in these all photographs are their own style and pixels alone count: the decoder learns to paint before it learns manners


class AnyStyleLesson:
    """Pairs of a photograph and a style image. The loss asks for the features that the decoder was given, and for the style's mean and deviation
    in every layer (eq. 11 to 13). A photograph that is its own style should come back pixel by pixel (Park & Lee 2019)."""

    def __init__(self, plan: Plan, photos: Photos, model: Model, fabric: Any) -> None:
        if not plan.styles:
            raise SightlineError("adaptive norm needs a folder of style images")
        if plan.extend is not None:
            raise SightlineError("adaptive norm takes any style as it is; there are no rows to extend")
        if plan.size > plan.style_size:
            raise SightlineError(f"size is {plan.size}, but the style images are kept with {plan.style_size} pixels; make it smaller")
        for path in plan.styles:
            if not path.is_file():
                images.read(path)  # raises with the nearest name
        self.plan, self.photos = plan, photos
        self.network = AnyStyle(model, plan.seed)
        with fabric.rank_zero_first():
            self.styles = kept(plan.styles, plan.style_size, plan.out, "styles")
        self.key = self.styles.key
        self.variation = tv().bind(model)
        deep, sample = self.network.deepest, photos.drawn(plan.seed, -1 % 2**32, 16, plan.size)
        self.network.scale.fill_(model.run(sample.to(model.device), [deep])[deep].square().mean().sqrt())

    def losses(self, net: Any, step: int, mine: slice) -> dict[str, Tensor]:
        plan, device = self.plan, self.network.model.device
        photo, style = (
            source.drawn(plan.seed + i, step, plan.batch, plan.size)[mine].to(device) for i, source in enumerate((self.photos, self.styles))
        )
        warm = step < WARM * plan.steps
        same = ((torch.arange(plan.batch) + step)[mine].to(device) % (1 if warm else SAME) == 0).float()
        style = torch.where(same[:, None, None, None] > 0, photo, style)
        with torch.no_grad():
            row = self.network.row(style)
        made = net(photo, row)
        with torch.set_grad_enabled(not warm):
            content, manner = self.terms(shifted(made, step, self.network.stride), shifted(photo, step, self.network.stride), style)
        pixels, variation = same * content_loss(made, photo), self.variation(made, {})
        loss = SAME_WEIGHT * pixels + plan.content_weight * content + plan.style_weight * manner + plan.tv_weight * variation
        return {"loss": loss, "content": content, "style": manner, "pixels": pixels, "tv": variation}

    def terms(self, made: Tensor, photo: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
        """Content and style loss, N each, in units of the features that are asked for."""
        network = self.network
        with torch.no_grad():
            wanted = network.model.run(style, network.layers)
            target = adain(network.model.run(photo, [network.deepest])[network.deepest], statistics(wanted[network.deepest]))
        found = network.model.run(made, network.layers)
        content = content_loss(found[network.deepest], target) / target.float().square().mean()
        terms = [
            content_loss(one, other) / other.square().mean()
            for layer in network.layers
            for one, other in zip(statistics(found[layer].float()), statistics(wanted[layer].float()), strict=True)
        ]
        return content, torch.stack(terms).sum(0) / len(network.layers)

    def write(self, path: Any, step: int) -> None:
        write_any(self.network, path, {"step": step, "size": self.plan.size})

    def sample(self, photos: Tensor) -> Tensor:
        """Each row a photograph, itself decoded, and the same in three styles; the first row is the styles."""
        styles = self.styles.spread(3).to(photos.device)
        rows = [self.network.row(style[None]).expand(len(photos), -1) for style in styles]
        made = [self.network(photos, self.network.row(photos)), *(self.network(photos, row) for row in rows)]
        return rowed(photos, made)
