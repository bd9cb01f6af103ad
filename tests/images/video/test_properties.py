"""Another rate leaves the sound out, with a warning; the same rate changes nothing."""

import warnings
from fractions import Fraction

import pytest

from sightline.images.video.properties import VideoProperties, set_frame_rate


def test_sound_does_not_fit_another_rate() -> None:
    properties = VideoProperties(Fraction(24000, 1001), has_sound=True)
    with pytest.warns(UserWarning, match=r"a\.mp4: the sound could not be kept"):
        changed = set_frame_rate(properties, 12.5, "a.mp4")
    assert changed == VideoProperties(Fraction(25, 2))
    same = set_frame_rate(properties, 23.976, "a.mp4")
    assert same == properties


def test_durations_go_with_the_rate_and_repetitions_stay() -> None:
    properties = VideoProperties(Fraction(10), (40, 160), loop_count=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set_frame_rate(properties, 25, "a.gif") == VideoProperties(
            Fraction(25), (), loop_count=3
        )


@pytest.mark.parametrize(("fps", "is_same"), [(10 + 10 / 4000, True), (10 + 10 / 3000, False)])
def test_a_second_an_hour_is_noticed(fps: float, is_same: bool) -> None:
    properties = VideoProperties(Fraction(10), (40, 160))
    assert (set_frame_rate(properties, fps, "a.gif") == properties) == is_same
