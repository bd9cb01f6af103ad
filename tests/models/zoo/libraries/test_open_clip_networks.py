"""CLIP networks of open_clip, tiny and random."""

import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, set_model_preprocess_cfg
from torch import nn

import sightline as sl
from sightline.models.zoo.libraries.open_clip_networks import find_open_clip_settings


@pytest.fixture(scope="module")
def clip() -> CLIP:
    torch.manual_seed(0)
    return CLIP(
        embed_dim=14,
        vision_cfg=CLIPVisionCfg(
            layers=1, width=32, head_width=16, patch_size=8, image_size=(24, 40)
        ),
        text_cfg=CLIPTextCfg(context_length=6, vocab_size=20, width=16, heads=2, layers=1),
    ).eval()


def test_the_visual_part_is_an_embedding_with_its_own_normalization(clip: CLIP) -> None:
    model = sl.load(clip.visual)
    assert (model.output_kind, len(model.labels)) == ("embedding", 14)
    assert model.image_size == (24, 40)
    assert model.mean.flatten().tolist() == pytest.approx([0.4815, 0.4578, 0.4082], abs=1e-4)
    image = torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(1))
    expected = clip.encode_image(model.normalize(image))
    torch.testing.assert_close(model.logits(image), expected, rtol=1e-4, atol=1e-5)


def test_the_whole_network_is_known_by_its_visual_part(clip: CLIP) -> None:
    model = sl.load(clip)
    image = torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(2))
    assert model.output_kind == "embedding"
    torch.testing.assert_close(model.logits(image).norm(dim=1), torch.ones(2))


def test_the_preprocessing_of_the_weights_counts() -> None:
    visual = nn.Linear(2, 2)
    visual.__class__ = type("Visual", (nn.Linear,), {"__module__": "open_clip.transformer"})
    set_model_preprocess_cfg(visual, {"mean": (0.5,) * 3, "std": (0.25,) * 3, "size": [32, 48]})
    assert find_open_clip_settings(visual) == {
        "mean": (0.5,) * 3,
        "std": (0.25,) * 3,
        "size": (32, 48),
        "output_kind": "embedding",
    }
    assert find_open_clip_settings(nn.Linear(2, 2)) == {}
