"""How a decoder for any style is trained (Huang 2017, section 5), as a lesson that `training` runs."""

from typing import Any

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.generators.architectures.adain import (
    AdaINStylizer,
    apply_adain,
    compute_channel_statistics,
)
from sightline.generators.checkpoint import write_any_style_network
from sightline.generators.training.dataset import PhotoDataset, cache_photos
from sightline.generators.training.fixed_styles import TrainingPlan, crop_by_step, make_photo_sheet
from sightline.images.io import read
from sightline.models.model import Model
from sightline.optim.objectives.objective import tv
from sightline.optim.perceptual.losses import compute_content_loss

IDENTITY_PERIOD = 4  # of that many pairs of photograph and style, one is a photograph and itself

IDENTITY_WEIGHT = 20.0

WARMUP_SHARE = 0.2  # of the steps; in these all photographs are their own style and pixels alone count: the decoder learns to paint before it learns manners


class AnyStyleTask:
    """Pairs of a photograph and a style image. The loss asks for the features that the decoder was given, and for the style's mean and deviation
    in every layer (eq. 11 to 13). A photograph that is its own style should come back pixel by pixel (Park & Lee 2019)."""

    def __init__(self, plan: TrainingPlan, photos: PhotoDataset, model: Model, fabric: Any) -> None:
        if not plan.styles:
            raise SightlineError("adaptive norm needs a folder of style images")
        if plan.extend is not None:
            raise SightlineError(
                "adaptive norm takes any style as it is; there are no rows to extend"
            )
        if plan.size > plan.style_size:
            raise SightlineError(
                f"size is {plan.size}, but the style images are kept with {plan.style_size} pixels; make it smaller"
            )
        for path in plan.styles:
            if not path.is_file():
                read(path)  # raises with the nearest name
        self.plan, self.photos = plan, photos
        self.network = AdaINStylizer(model, plan.seed)
        with fabric.rank_zero_first():
            self.styles = cache_photos(plan.styles, plan.style_size, plan.out, "styles")
        self.data_fingerprint = self.styles.fingerprint
        self.total_variation = tv().bind(model)
        deep, sample = (
            self.network.deepest_layer,
            photos.draw_batch(plan.seed, -1 % 2**32, 16, plan.size),
        )
        self.network.scale.fill_(
            model.run(sample.to(model.device), [deep])[deep].square().mean().sqrt()
        )

    def compute_losses(
        self, wrapped_network: Any, step: int, own_slice: slice
    ) -> dict[str, Tensor]:
        plan, device = self.plan, self.network.model.device
        photo, style = (
            source.draw_batch(plan.seed + i, step, plan.batch, plan.size)[own_slice].to(device)
            for i, source in enumerate((self.photos, self.styles))
        )
        warm = step < WARMUP_SHARE * plan.steps
        same = (
            (torch.arange(plan.batch) + step)[own_slice].to(device)
            % (1 if warm else IDENTITY_PERIOD)
            == 0
        ).float()
        style = torch.where(same[:, None, None, None] > 0, photo, style)
        with torch.no_grad():
            row = self.network.make_style_row(style)
        made = wrapped_network(photo, row)
        with torch.set_grad_enabled(not warm):
            content, manner = self.compute_terms(
                crop_by_step(made, step, self.network.stride),
                crop_by_step(photo, step, self.network.stride),
                style,
            )
        pixels, variation = same * compute_content_loss(made, photo), self.total_variation(made, {})
        loss = (
            IDENTITY_WEIGHT * pixels
            + plan.content_weight * content
            + plan.style_weight * manner
            + plan.tv_weight * variation
        )
        return {
            "loss": loss,
            "content": content,
            "style": manner,
            "pixels": pixels,
            "tv": variation,
        }

    def compute_terms(
        self, stylized: Tensor, photo: Tensor, style: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Content and style loss, N each, in units of the features that are asked for."""
        network = self.network
        with torch.no_grad():
            wanted = network.model.run(style, network.layers)
            target = apply_adain(
                network.model.run(photo, [network.deepest_layer])[network.deepest_layer],
                compute_channel_statistics(wanted[network.deepest_layer]),
            )
        found = network.model.run(stylized, network.layers)
        content = (
            compute_content_loss(found[network.deepest_layer], target)
            / target.float().square().mean()
        )
        terms = [
            compute_content_loss(one, other) / other.square().mean()
            for layer in network.layers
            for one, other in zip(
                compute_channel_statistics(found[layer].float()),
                compute_channel_statistics(wanted[layer].float()),
                strict=True,
            )
        ]
        return content, torch.stack(terms).sum(0) / len(network.layers)

    def write_network(self, path: Any, step: int) -> None:
        write_any_style_network(self.network, path, {"step": step, "size": self.plan.size})

    def make_sample_sheet(self, photos: Tensor) -> Tensor:
        """Each row a photograph, itself decoded, and the same in three styles; the first row is the styles."""
        styles = self.styles.pick_evenly(3).to(photos.device)
        rows = [
            self.network.make_style_row(style[None]).expand(len(photos), -1) for style in styles
        ]
        made = [
            self.network(photos, self.network.make_style_row(photos)),
            *(self.network(photos, row) for row in rows),
        ]
        return make_photo_sheet(photos, made)
