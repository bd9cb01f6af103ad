"""What comes with a network is what a model may be told."""

import inspect

from sightline.models.model import Model
from sightline.models.zoo.builders import IMPORTED_SETTINGS
from sightline.models.zoo.libraries.settings import ModelSettings


def test_settings_are_arguments_of_a_model() -> None:
    arguments = set(inspect.signature(Model).parameters)
    assert set(ModelSettings.__annotations__) <= arguments
    assert set(IMPORTED_SETTINGS) - {"multilabel"} <= set(ModelSettings.__annotations__)
