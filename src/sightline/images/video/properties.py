"""How a video is shown: its rate, and the durations and repetitions of an animation.

`read_video_properties` reads them. Given to `write_video`, the new video is shown in the same way.
"""

import warnings
from dataclasses import dataclass, replace
from fractions import Fraction

# Files that Pillow reads and writes: they have a duration for each frame, and no sound.
ANIMATION_SUFFIXES = (".gif", ".webp")
VIDEO_SUFFIXES = (".mp4", *ANIMATION_SUFFIXES)
REPEAT_FOREVER = 0
# A second an hour. Frame rates that differ by less than this are the same to a viewer.
SAME_RATE_TOLERANCE = 1 / 3600


@dataclass(frozen=True)
class VideoProperties:
    """How a video is shown.

    Attributes:
        frame_rate: Frames a second, their average where it varies.
        durations: Of a GIF or WebP, the milliseconds that each frame is shown; otherwise empty.
        loop_count: Of a GIF or WebP, how often it repeats, as the file holds it: 0 is for ever,
            None is a GIF that says nothing and is shown once.
        has_sound: Whether there is an audio stream.
    """

    frame_rate: Fraction
    durations: tuple[int, ...] = ()
    loop_count: int | None = REPEAT_FOREVER
    has_sound: bool = False


def set_frame_rate(properties: VideoProperties, fps: float, name: str) -> VideoProperties:
    """The properties with another frame rate; `name` stands for the video in warnings.

    The sound no longer fits, because the video lasts longer or shorter. It is left out, with a
    warning. A rate that differs too little to be noticed changes nothing.
    """
    frame_rate = Fraction(fps).limit_denominator(1001)
    if abs(frame_rate / properties.frame_rate - 1) < SAME_RATE_TOLERANCE:
        return properties
    if properties.has_sound:
        rate = float(properties.frame_rate)
        warnings.warn(
            f"{name}: the sound could not be kept (at {fps:g} frames a second instead of {rate:g} "
            "it does not fit)",
            stacklevel=2,
        )
    return replace(properties, frame_rate=frame_rate, durations=(), has_sound=False)
