"""Style networks at work: sizes, batches, folders, and videos held steady."""

from pathlib import Path

import pytest
import torch
from helpers import smooth
from torch import Tensor

import sightline as sl
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
from sightline.images import io as images


@pytest.fixture(scope="module")
def styles() -> FixedStyleNetwork:
    return FixedStyleNetwork(make_stylizer(0, 2, width=4, blocks=1).eval(), ("a", "b"))


def moving(count: int, step: int = 2, side: int = 48) -> list[Tensor]:
    """A textured picture that moves to the right."""
    world = smooth(side=128, seed=2) * 0.5 + 0.5 * torch.rand(
        1, 3, 16, 16, generator=torch.Generator().manual_seed(0)
    ).repeat_interleave(8, 2).repeat_interleave(8, 3)
    return [world[..., 20 : 20 + side, 60 - step * i : 60 - step * i + side] for i in range(count)]


def test_a_batch_is_its_images(styles: FixedStyleNetwork) -> None:
    both = smooth(2, 33)
    together = restyle_images(styles, both, styles.make_mix("a"))
    for image, made in zip(both.split(1), together.split(1), strict=True):
        torch.testing.assert_close(
            restyle_images(styles, image, styles.make_mix("a")), made, rtol=1e-4, atol=1e-5
        )


def test_borders_are_not_dead(styles: FixedStyleNetwork) -> None:
    """A constant image gives a constant picture, up to the very border: padding reflects, it adds no zeros."""
    made = restyle_images(styles, torch.full((1, 3, 37, 50), 0.3), styles.make_mix("b"))
    assert (made - made.mean((2, 3), keepdim=True)).abs().max() < 1e-4


def test_what_repeats_is_painted_alike(styles: FixedStyleNetwork) -> None:
    made = restyle_images(styles, smooth(side=32).repeat(1, 1, 5, 5), styles.make_mix("a"))
    torch.testing.assert_close(
        made[..., 64:96, 32:64], made[..., 64:96, 64:96], rtol=1e-3, atol=1e-3
    )


def test_folders(tmp_path: Path) -> None:
    for name, side in (("a", 20), ("b", 20), ("c", 24), ("e", 24), ("f", 12)):
        images.write(smooth(side=side), tmp_path / f"{name}.png")
    (tmp_path / "d.jpg").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("no picture")
    found = list(read_picture_batches(list_folder_pictures(tmp_path), None, 4))
    told = [([path.stem for path in held], type(stack).__name__) for held, stack in found]
    assert told == [
        (["a", "b"], "Tensor"),
        (["d"], "SightlineError"),
        (["f"], "SightlineError"),
        (["c", "e"], "Tensor"),
    ]
    assert [
        len(held)
        for held, stack in read_picture_batches(list_folder_pictures(tmp_path), 16, 3)
        if isinstance(stack, Tensor)
    ] == [3, 2]
    (tmp_path / "empty").mkdir()
    with pytest.raises(sl.SightlineError, match="holds no picture"):
        list_folder_pictures(tmp_path / "empty")


def test_flow_finds_the_motion() -> None:
    before, after = moving(2, step=3)
    found = compute_optical_flow(after, before)
    assert abs(float(found[0, 0, 12:36, 12:36].median()) + 3) < 0.5, (
        "the same place lies 3 pixels to the left in the frame before"
    )
    assert abs(float(found[0, 1, 12:36, 12:36].median())) < 0.3
    error = (warp_by_flow(before, found) - after).abs()[..., 8:40, 8:40].mean()
    assert error < 0.3 * (before - after).abs()[..., 8:40, 8:40].mean()


def test_warping_by_nothing_and_by_whole_pixels() -> None:
    image = smooth(side=20)
    assert torch.allclose(warp_by_flow(image, torch.zeros(1, 2, 20, 20)), image, atol=1e-5)
    move = torch.zeros(1, 2, 20, 20)
    move[:, 0] = 3
    assert torch.allclose(warp_by_flow(image, move)[..., :17], image[..., 3:], atol=1e-5)


def test_a_cut_is_not_followed() -> None:
    before, after = (
        moving(1)[0],
        torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(3)),
    )
    assert warp_to_frame(before, before, after)[1].mean() < 0.5
    assert warp_to_frame(before, before, before)[1].mean() == 1


def test_temporal_steadies_noise_and_zero_changes_nothing(styles: FixedStyleNetwork) -> None:
    noise = torch.Generator().manual_seed(1)
    frames = [
        (frame + 0.05 * torch.randn(frame.shape, generator=noise)).clamp(0, 1)
        for frame in moving(5, step=0)
    ]

    def flicker(temporal: float) -> float:
        made = list(
            restyle_video(
                styles, frames, styles.make_mix("a"), batch_size=2, temporal_weight=temporal
            )
        )
        return float(torch.cat(made).diff(dim=0).abs().mean())

    assert flicker(0.8) < 0.6 * flicker(0.0)
    plain = list(restyle_video(styles, frames, styles.make_mix("a"), batch_size=2))
    for frame, made in zip(frames, plain, strict=True):
        torch.testing.assert_close(
            made, restyle_images(styles, frame, styles.make_mix("a")), rtol=1e-4, atol=1e-5
        )


def test_a_video_is_taken_frame_by_frame(styles: FixedStyleNetwork) -> None:
    asked: list[int] = []

    def frames() -> object:
        for i, frame in enumerate(moving(6)):
            asked.append(i)
            yield frame

    made = restyle_video(styles, frames(), styles.make_mix("a"), size=16, batch_size=2)  # type: ignore[arg-type]
    assert next(made).shape == (1, 3, 16, 16)
    assert asked == [0, 1]
