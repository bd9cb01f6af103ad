"""Presets are the published recipes, in pixels of [0, 1]."""

from typing import get_args

import pytest

from sightline.methods.synthesis.presets import (
    SYNTHESIS_PRESETS,
    StartKind,
    SynthesisPresetName,
)


def test_every_name_has_a_preset() -> None:
    assert {"auto", *SYNTHESIS_PRESETS} == set(get_args(SynthesisPresetName))


@pytest.mark.parametrize("name", SYNTHESIS_PRESETS)
def test_a_preset_is_whole(name: str) -> None:
    preset = SYNTHESIS_PRESETS[name]
    assert preset.start in get_args(StartKind)
    assert preset.lr > 0
    assert preset.steps >= 1
    low, high = preset.crop_range
    assert 0 < low <= high <= 1
    # Random crops replace the warp.
    assert not (preset.crop_count and preset.warp_scale)


def test_only_gray_and_black_are_pixels() -> None:
    pixel_based = {name for name, preset in SYNTHESIS_PRESETS.items() if preset.is_pixel_based}
    assert pixel_based == {
        "lecture",
        "yosinski",
        "yosinski-small",
        "yosinski-decay",
        "yosinski-idle",
    }


def test_yosinski_s_steps_are_those_of_pixels_to_255() -> None:
    """x += lr·∂s/∂x on [0, 255] is a step of lr/255² on [0, 1], by the chain rule twice."""
    assert SYNTHESIS_PRESETS["yosinski"].lr * 255**2 == pytest.approx(100)
    assert SYNTHESIS_PRESETS["yosinski-idle"].lr * 255**2 == pytest.approx(1e8)
    assert SYNTHESIS_PRESETS["yosinski"].noise * 255 == pytest.approx(10)
