"""Applying style networks: sizes, batches, folders, and videos blended along the motion."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import smooth
from torch import Tensor

import sightline as sl
from sightline.generators import apply
from sightline.generators.apply import (
    compute_optical_flow,
    list_folder_pictures,
    read_picture_batches,
    restyle_images,
    restyle_video,
    warp_by_flow,
    warp_to_frame,
)
from sightline.generators.architectures.style import make_stylizer
from sightline.generators.checkpoint import FixedStyleNetwork
from sightline.images.io import pictures as images

HEIGHT, WIDTH = 48, 64

# Far enough from the borders that what moves in from outside is not seen.
INTERIOR = (..., slice(10, HEIGHT - 10), slice(10, WIDTH - 10))


@pytest.fixture(scope="module")
def style_network() -> FixedStyleNetwork:
    return FixedStyleNetwork(make_stylizer(0, 2, width=4, blocks=1).eval(), ("a", "b"))


@pytest.fixture
def identity_network() -> Any:
    """A style network that returns its input."""
    return SimpleNamespace(device=torch.device("cpu"), network=lambda image, _: image)


def make_moving_frames(count: int, dx: int, dy: int) -> list[Tensor]:
    """A textured scene that moves by dx pixels to the right and dy down from frame to frame."""
    blocks = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    texture = blocks.repeat_interleave(8, 2).repeat_interleave(8, 3)
    scene = 0.5 * smooth(side=128, seed=2) + 0.5 * texture
    frames: list[Tensor] = []
    for index in range(count):
        top, left = 40 - dy * index, 40 - dx * index
        frames.append(scene[..., top : top + HEIGHT, left : left + WIDTH])
    return frames


# ── images ──


def test_a_batch_is_restyled_as_its_images_are(style_network: FixedStyleNetwork) -> None:
    batch = smooth(3, 40)[..., :33, :]
    mix = style_network.make_mix("a")
    restyled = restyle_images(style_network, batch, mix)
    assert restyled.shape == batch.shape
    for image, expected in zip(batch.split(1), restyled.split(1), strict=True):
        actual = restyle_images(style_network, image, mix)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_each_image_takes_its_own_row_of_the_mix(style_network: FixedStyleNetwork) -> None:
    batch = smooth(2, 40)[..., :33, :]
    rows = torch.cat([style_network.make_mix("a"), style_network.make_mix("b")])
    restyled = restyle_images(style_network, batch, rows)
    second = restyle_images(style_network, batch[1:], style_network.make_mix("b"))
    torch.testing.assert_close(restyled[1:], second, rtol=1e-4, atol=1e-5)


def test_a_constant_image_stays_constant_up_to_the_border(style_network: FixedStyleNetwork) -> None:
    """Padding reflects; zeros would show."""
    constant = torch.full((1, 3, 37, 50), 0.3)
    restyled = restyle_images(style_network, constant, style_network.make_mix("b"))
    assert (restyled - restyled.mean((2, 3), keepdim=True)).abs().max() < 1e-4


def test_repeated_content_is_restyled_alike(style_network: FixedStyleNetwork) -> None:
    tiles = smooth(side=40)[..., :32, :].repeat(1, 1, 5, 5)
    restyled = restyle_images(style_network, tiles, style_network.make_mix("a"))
    left = restyled[..., 64:96, 40:80]
    right = restyled[..., 64:96, 80:120]
    torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-3)


def test_a_lack_of_memory_is_one_line_and_other_errors_pass() -> None:
    def fail(message: str) -> Any:
        def network(image: Tensor, mix: Tensor) -> Tensor:
            raise RuntimeError(message)

        return SimpleNamespace(device=torch.device("cpu"), network=network)

    image, mix = torch.rand(1, 3, 20, 30), torch.ones(1, 1)
    refusal = "restyle 1 images of 20×30 pixels at once; lower size or batch"
    with pytest.raises(sl.SightlineError, match=refusal):
        restyle_images(fail("can't allocate memory: you tried 9 bytes\nat x.cpp"), image, mix)
    with pytest.raises(RuntimeError, match="shapes differ"):
        restyle_images(fail("shapes differ"), image, mix)


def test_an_image_below_16_pixels_is_refused(style_network: FixedStyleNetwork) -> None:
    mix = style_network.make_mix("a")
    assert restyle_images(style_network, torch.rand(1, 3, 16, 30), mix).shape == (1, 3, 16, 30)
    with pytest.raises(sl.SightlineError, match="an image of 15×30 pixels is too small"):
        restyle_images(style_network, torch.rand(1, 3, 15, 30), mix)


# ── folders ──


def test_a_folder_is_read_in_batches_of_equal_size(tmp_path: Path) -> None:
    for name, side in (("a", 20), ("b", 20), ("c", 24), ("e", 24), ("f", 12)):
        images.write(smooth(side=side), tmp_path / f"{name}.png")
    (tmp_path / "d.jpg").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("no picture")
    paths = list_folder_pictures(tmp_path)

    batches = list(read_picture_batches(paths, None, 4))
    names = [([path.stem for path in group], type(batch).__name__) for group, batch in batches]
    assert names == [
        (["a", "b"], "Tensor"),
        (["d"], "SightlineError"),
        (["f"], "SightlineError"),
        (["c", "e"], "Tensor"),
    ]

    resized = [
        (len(group), batch.shape)
        for group, batch in read_picture_batches(paths, 16, 3)
        if isinstance(batch, Tensor)
    ]
    assert resized == [(3, (3, 3, 16, 16)), (2, (2, 3, 16, 16))]


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(sl.SightlineError, match="holds no picture"):
        list_folder_pictures(tmp_path)


# ── motion ──


def test_flow_measures_the_motion_in_x_and_y() -> None:
    previous_frame, frame = make_moving_frames(2, dx=3, dy=-2)
    flow = compute_optical_flow(frame, previous_frame)
    # What is at p now was 3 pixels to the left and 2 below.
    x, y = (float(flow[0, axis][INTERIOR].median()) for axis in (0, 1))
    assert x == pytest.approx(-3, abs=0.5)
    assert y == pytest.approx(2, abs=0.5)


def test_warping_by_whole_pixels_reads_at_the_displaced_position() -> None:
    image = torch.rand(1, 3, 20, 26, generator=torch.Generator().manual_seed(1))
    displacement = torch.zeros(1, 2, 20, 26)
    torch.testing.assert_close(warp_by_flow(image, displacement), image, rtol=0, atol=1e-4)

    displacement[:, 0] = 3
    displacement[:, 1] = -2
    warped = warp_by_flow(image, displacement)
    torch.testing.assert_close(warped[..., 2:, :-3], image[..., :-2, 3:], rtol=0, atol=1e-4)
    # Beyond the border its pixels are repeated.
    torch.testing.assert_close(warped[..., 0, :-3], image[..., 0, 3:], rtol=0, atol=1e-4)


def test_a_picture_is_warped_along_the_motion() -> None:
    """The negative of the previous frame becomes the negative of the frame."""
    previous_frame, frame = make_moving_frames(2, dx=3, dy=-2)
    warped, is_reliable = warp_to_frame(previous_frame, 1 - previous_frame, frame)
    error = (warped - (1 - frame))[INTERIOR].abs().mean()
    unwarped_error = (previous_frame - frame)[INTERIOR].abs().mean()
    assert error < 0.3 * unwarped_error
    assert is_reliable[INTERIOR].mean() > 0.8


def test_flow_is_reliable_where_it_cancels_with_its_inverse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ruder 2016, equation 5, position by position."""
    random = torch.Generator().manual_seed(4)
    forward = 3 * torch.randn(1, 2, 18, 24, generator=random)
    backward = torch.empty(1, 2, 18, 24)
    backward[:, 0] = 2
    backward[:, 1] = -1
    frame, previous_frame = torch.rand(1, 3, 18, 24), torch.rand(1, 3, 18, 24)

    def stub_flow(source_frame: Tensor, target_frame: Tensor) -> Tensor:
        return backward if source_frame is frame else forward

    monkeypatch.setattr(apply, "compute_optical_flow", stub_flow)
    _, is_reliable = warp_to_frame(previous_frame, previous_frame, frame)
    for y in range(1, 18):
        for x in range(22):
            b = backward[0, :, y, x]
            f = forward[0, :, y - 1, x + 2]
            limit = 0.01 * (f.square().sum() + b.square().sum()) + 0.5
            assert bool(is_reliable[0, 0, y, x]) == bool((f + b).square().sum() <= limit)
    assert 0 < is_reliable.mean() < 1


def test_a_cut_is_not_followed() -> None:
    before = make_moving_frames(1, 0, 0)[0]
    after = torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(3))
    assert warp_to_frame(before, before, after)[1].mean() < 0.5
    assert warp_to_frame(before, before, before)[1].mean() == 1


# ── video ──


def test_a_moving_scene_has_no_ghost(identity_network: Any) -> None:
    """With a network that changes nothing, the previous output, moved, is the frame itself."""
    frames = make_moving_frames(4, dx=3, dy=-2)
    video = restyle_video(
        identity_network, frames, torch.ones(1, 1), batch_size=3, temporal_weight=0.9
    )
    for index, (output, frame) in enumerate(zip(video, frames, strict=True)):
        if index == 0:
            assert torch.equal(output, frame)
            continue
        motion = (frames[index - 1] - frame)[INTERIOR].abs().mean()
        assert (output - frame)[INTERIOR].abs().mean() < 0.3 * motion


def test_every_frame_is_blended_with_the_output_before_it(
    style_network: FixedStyleNetwork,
) -> None:
    """The recursion written out; it goes on from batch to batch."""
    frames = make_moving_frames(5, dx=2, dy=1)
    mix = style_network.make_mix("a")
    restyled = [restyle_images(style_network, frame, mix) for frame in frames]
    expected = [restyled[0]]
    for index in range(1, 5):
        warped, is_reliable = warp_to_frame(frames[index - 1], expected[-1], frames[index])
        blend = 0.3 * restyled[index] + 0.7 * warped
        expected.append(torch.where(is_reliable > 0, blend, restyled[index]))
    video = restyle_video(style_network, frames, mix, batch_size=2, temporal_weight=0.7)
    for actual, output in zip(video, expected, strict=True):
        torch.testing.assert_close(actual, output, rtol=1e-4, atol=1e-4)


def test_blending_reduces_flicker_and_weight_0_changes_nothing(
    style_network: FixedStyleNetwork,
) -> None:
    random = torch.Generator().manual_seed(1)
    frames = [
        (frame + 0.05 * torch.randn(frame.shape, generator=random)).clamp(0, 1)
        for frame in make_moving_frames(5, 0, 0)
    ]
    mix = style_network.make_mix("a")

    def measure_flicker(temporal_weight: float) -> float:
        video = restyle_video(
            style_network, frames, mix, batch_size=2, temporal_weight=temporal_weight
        )
        return float(torch.cat(list(video)).diff(dim=0).abs().mean())

    assert measure_flicker(0.8) < 0.6 * measure_flicker(0.0)
    video = restyle_video(style_network, frames, mix, batch_size=2)
    for frame, output in zip(frames, video, strict=True):
        expected = restyle_images(style_network, frame, mix)
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


def test_a_video_is_read_no_further_than_a_batch(style_network: FixedStyleNetwork) -> None:
    numbers_read: list[int] = []

    def read_frames() -> Iterator[Tensor]:
        for number, frame in enumerate(make_moving_frames(6, 2, 1)):
            numbers_read.append(number)
            yield frame

    mix = style_network.make_mix("a")
    video = restyle_video(style_network, read_frames(), mix, size=24, batch_size=2)
    assert next(video).shape == (1, 3, 24, 32)
    assert numbers_read == [0, 1]
