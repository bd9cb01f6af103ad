"""The shipped generators: sizes of their images, and that they invert the features they take."""

import pytest
import torch

import sightline as sl
from sightline.generators.architectures.decoder import (
    activate_and_normalize,
    load_code_generator,
    load_feature_decoder,
    load_generator,
    map_generator_layers,
)


def draw_codes(count: int) -> torch.Tensor:
    generator = load_code_generator()
    noise = torch.randn(count, 256, generator=torch.Generator().manual_seed(0))
    return generator.mean + generator.deviation * noise


def test_features_of_any_size_give_images_16_times_as_large() -> None:
    decoder = load_feature_decoder()
    random = torch.Generator().manual_seed(1)
    features = decoder.mean + decoder.deviation * torch.randn(2, 256, 3, 5, generator=random)
    images = decoder(features)
    assert images.shape == (2, 3, 48, 80)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1


def test_inputs_are_clipped_at_4_deviations() -> None:
    generator = load_code_generator()
    limit = generator.mean + 4 * generator.deviation
    beyond = generator.mean + 9 * generator.deviation
    below = generator.mean + 3.9 * generator.deviation
    torch.testing.assert_close(generator(beyond), generator(limit))
    assert (generator(below) - generator(limit)).abs().max() > 1e-4


def test_positions_are_normalized_over_channels() -> None:
    x = torch.randn(2, 7, 3, 4, generator=torch.Generator().manual_seed(2))
    output = activate_and_normalize(x)
    for n, y, column in ((0, 0, 3), (1, 2, 0)):
        vector = x[n, :, y, column]
        activated = torch.where(vector > 0, vector, 0.3 * vector)
        expected = activated / (activated.square().sum() / 7 + 1e-6).sqrt()
        torch.testing.assert_close(output[n, :, y, column], expected)


def test_the_code_generator_decodes_features_that_it_predicts() -> None:
    """They have the size of the embedded network's features at 96 pixels."""
    generator = load_code_generator()
    codes = draw_codes(2)
    features = generator.predict_features(codes)
    network_features = sl.load().features(torch.rand(1, 3, 96, 96), "relu4_2")["relu4_2"]
    assert features.shape == (2, *network_features.shape[1:]) == (2, 256, 6, 6)
    assert (features >= 0).all()
    images = generator(codes)
    assert torch.equal(images, load_feature_decoder()(features))
    assert images.shape == (2, 3, 96, 96)


def test_an_image_made_from_features_has_them_again() -> None:
    """They are nearer to the photograph's than to any other photograph's."""
    model = sl.load("sightnet_plain")
    names = ("chelsea", "rocket", "astronaut", "coffee")
    photos = torch.cat([model.fit(sl.sample(name), 96) for name in names])
    target = model.features(photos, "penultimate")["penultimate"]
    images = load_code_generator()(target)
    features = model.features(images, "penultimate")["penultimate"]
    assert torch.cdist(features, target).argmin(1).tolist() == [0, 1, 2, 3]
    assert ((features - target).norm(dim=1) < 0.8 * target.norm(dim=1)).all()


def test_generators_are_found_by_the_models_layers(tiny: sl.Model) -> None:
    model = sl.load("sightnet_plain")
    assert list(map_generator_layers(model).values()) == ["relu4_2", "penultimate"]
    assert load_generator(model, "relu4_2") is load_feature_decoder()
    with pytest.raises(sl.SightlineError, match="relu1 has no generator; choose from relu4_2"):
        load_generator(model, "relu1")
    for other in (tiny, sl.load("sightnet_plain", weights="random")):
        with pytest.raises(sl.SightlineError, match=f"not on those of {other.name}"):
            load_generator(other, "relu4_2")
