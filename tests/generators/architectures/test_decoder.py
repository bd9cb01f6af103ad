"""The shipped generators: pictures of their size, from features with places and without, told apart by what they were made from."""

import torch

import sightline as sl
from sightline.generators.architectures.decoder import (
    load_code_generator,
    load_feature_decoder,
    map_generator_layers,
)


def test_the_composer_paints_through_the_decoder() -> None:
    """Its own two halves by hand; the size of the features is that of the embedded network's at 96 pixels."""
    code = load_code_generator().mean + load_code_generator().deviation * torch.randn(
        2, 256, generator=torch.Generator().manual_seed(0)
    )
    features = load_code_generator().predict_features(code)
    assert (
        features.shape
        == (2, 256, 6, 6)
        == (2, *sl.load().features(torch.rand(1, 3, 96, 96), "relu4_2")["relu4_2"].shape[1:])
    )
    assert (features >= 0).all()
    picture = load_code_generator()(code)
    assert torch.equal(picture, load_feature_decoder()(features))
    assert picture.shape == (2, 3, 96, 96)
    assert 0 <= float(picture.min()) <= float(picture.max()) <= 1


def test_a_vector_brings_back_its_features() -> None:
    """What is painted from the last features of a photograph has features nearer to those than to any other photograph's."""
    model = sl.load()
    photos = torch.cat(
        [model.fit(sl.sample(name), 96) for name in ("chelsea", "rocket", "astronaut", "coffee")]
    )
    wanted = model.features(photos, "penultimate")["penultimate"]
    found = model.features(load_code_generator()(wanted), "penultimate")["penultimate"]
    assert torch.cdist(found, wanted).argmin(1).tolist() == [0, 1, 2, 3]
    assert ((found - wanted).norm(dim=1) < 0.8 * wanted.norm(dim=1)).all()


def test_the_layers_are_the_models_own() -> None:
    assert list(map_generator_layers(sl.load()).values()) == ["relu4_2", "penultimate"]
