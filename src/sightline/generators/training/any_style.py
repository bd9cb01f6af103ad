"""How a decoder for any style is trained (Huang 2017, section 5)."""

from pathlib import Path
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
from sightline.generators.training.fixed_styles import (
    TrainingPlan,
    crop_by_step,
    draw_unit_sample,
    make_photo_sheet,
)
from sightline.images.io.pictures import read_picture
from sightline.models.model import Model
from sightline.optim.objectives.objective import tv
from sightline.optim.perceptual.losses import compute_content_loss

# One of this many pairs is a photograph with itself as style.
IDENTITY_PERIOD = 4

IDENTITY_WEIGHT = 20.0

# In the first share of the steps every photograph is its own style and only the pixel loss has a
# gradient: the decoder learns to reconstruct before it learns styles. Not in the paper.
WARMUP_SHARE = 0.2


class AnyStyleTask:
    """Trains the decoder on pairs of a photograph and a style image.

    The content loss asks for the features that the decoder was given, the style loss for the
    style's mean and standard deviation in every layer (eq. 11 to 13). A photograph that is its own
    style should come back pixel by pixel (Park & Lee 2019).
    """

    def __init__(self, plan: TrainingPlan, photos: PhotoDataset, model: Model, fabric: Any) -> None:
        check_any_style_plan(plan)
        self.plan = plan
        self.photos = photos
        self.model = model
        self.network = AdaINStylizer(model, plan.seed)
        with fabric.rank_zero_first():
            self.styles = cache_photos(plan.styles, plan.style_size, plan.out, "styles")
        self.data_digests = {"style pictures": self.styles.fingerprint}
        self.total_variation = tv().bind(model)

        sample = draw_unit_sample(photos, plan).to(model.device)
        deepest_layer = self.network.deepest_layer
        features = model.run(sample, [deepest_layer])[deepest_layer]
        self.network.scale.fill_(features.square().mean().sqrt())

    def compute_losses(
        self, wrapped_network: Any, step: int, own_slice: slice
    ) -> dict[str, Tensor]:
        """The losses of this process's slice of the batch, N each."""
        plan = self.plan
        is_warmup = step < WARMUP_SHARE * plan.steps
        photo, style, is_identity = self.draw_pairs(step, own_slice, is_warmup)
        with torch.no_grad():
            mix = self.network.make_style_row(style)
        stylized = wrapped_network(photo, mix)

        with torch.set_grad_enabled(not is_warmup):
            content_loss, style_loss = self.compute_terms(
                crop_by_step(stylized, step, self.network.stride),
                crop_by_step(photo, step, self.network.stride),
                style,
            )
        pixel_loss = is_identity * compute_content_loss(stylized, photo)
        total_variation = self.total_variation(stylized, {})
        loss = (
            IDENTITY_WEIGHT * pixel_loss
            + plan.content_weight * content_loss
            + plan.style_weight * style_loss
            + plan.tv_weight * total_variation
        )
        return {
            "loss": loss,
            "content": content_loss,
            "style": style_loss,
            "pixels": pixel_loss,
            "tv": total_variation,
        }

    def draw_pairs(
        self, step: int, own_slice: slice, is_warmup: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Photographs and styles, N×3×size×size each, and which pairs are identities.

        The last are N numbers: 1 where the photograph is its own style, else 0.
        """
        plan = self.plan
        device = self.network.model.device
        photos = self.photos.draw_batch(plan.seed, step, plan.batch, plan.size)
        styles = self.styles.draw_batch(plan.seed + 1, step, plan.batch, plan.size)
        photo = photos[own_slice].to(device)
        style = styles[own_slice].to(device)

        # Over the steps the identities move through the batch.
        period = 1 if is_warmup else IDENTITY_PERIOD
        numbers = torch.arange(plan.batch) + step
        own_numbers = numbers[own_slice].to(device)
        is_identity = (own_numbers % period == 0).float()

        style = torch.where(is_identity[:, None, None, None] > 0, photo, style)
        return photo, style, is_identity

    def compute_terms(
        self, stylized: Tensor, photo: Tensor, style: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Content and style loss, N each, relative to the mean square of what is asked for."""
        network = self.network
        deepest_layer = network.deepest_layer
        with torch.no_grad():
            style_features = network.model.run(style, network.layers)
            photo_features = network.model.run(photo, [deepest_layer])
            style_statistics = compute_channel_statistics(style_features[deepest_layer])
            target = apply_adain(photo_features[deepest_layer], style_statistics)

        features = network.model.run(stylized, network.layers)
        content_error = compute_content_loss(features[deepest_layer], target)
        content_loss = content_error / target.float().square().mean()

        style_losses: list[Tensor] = []
        for layer in network.layers:
            statistics = compute_channel_statistics(features[layer].float())
            target_statistics = compute_channel_statistics(style_features[layer].float())
            for value, target_value in zip(statistics, target_statistics, strict=True):
                error = compute_content_loss(value, target_value)
                style_losses.append(error / target_value.square().mean())
        style_loss = torch.stack(style_losses).sum(0) / len(network.layers)
        return content_loss, style_loss

    def write_network(self, path: Path, step: int) -> None:
        write_any_style_network(self.network, path, {"step": step, "size": self.plan.size})

    def make_sample_sheet(self, photos: Tensor) -> Tensor:
        """Each row shows a photograph, its reconstruction, and the photograph in three styles."""
        own_mix = self.network.make_style_row(photos)
        variants = [self.network(photos, own_mix)]
        styles = self.styles.pick_evenly(3).to(photos.device)
        for style in styles.split(1):
            row = self.network.make_style_row(style)
            mix = row.expand(len(photos), -1)
            variants.append(self.network(photos, mix))
        return make_photo_sheet(photos, variants)


def check_any_style_plan(plan: TrainingPlan) -> None:
    """Raises SightlineError for a plan that can't be carried out with adaptive norm."""
    if not plan.styles:
        raise SightlineError("adaptive norm needs a folder of style images")
    if plan.extend is not None:
        raise SightlineError("adaptive norm takes any style as it is; there are no rows to extend")
    if plan.size > plan.style_size:
        raise SightlineError(
            f"size is {plan.size}, but the style images are kept with {plan.style_size} pixels;"
            " make it smaller"
        )
    for path in plan.styles:
        if not path.is_file():
            read_picture(path)  # Raises with the nearest name.
