"""Measures of a texture by hand, and memory that is what the tables take."""

import pytest
import torch
from torch import Tensor

from sightline.methods.texture.efros_leung import extract_windows
from sightline.methods.texture.metrics import (
    estimate_exemplar_memory,
    measure_copy_rate,
    measure_seam,
    measure_seed_diversity,
)
from sightline.methods.texture.patchmatch import PatchMatch


@pytest.fixture(scope="module")
def grain() -> Tensor:
    return torch.rand(3, 30, 34, generator=torch.Generator().manual_seed(0))


def test_copies_are_counted(grain: Tensor) -> None:
    assert measure_copy_rate(grain, grain) == 1
    assert measure_copy_rate(1 - grain, grain) == 0
    copied, changed = grain[:, :12, :24], 1 - grain[:, :24, :24]
    assert measure_copy_rate(torch.cat([copied, changed], 1), grain, side=12) == pytest.approx(
        1 / 3
    )


def test_a_copy_may_differ_by_a_hundredth_of_the_range(grain: Tensor) -> None:
    """As the root mean square over the pixels, with the three colors of a pixel as one."""
    inside = grain[:, 5:17, 3:15] * 0.9
    for size, rate in ((0.009, 1), (0.011, 0)):
        assert measure_copy_rate(inside + size, grain * 0.9) == rate


def test_seams_by_hand() -> None:
    ramp = torch.linspace(0, 1, 11).expand(3, 7, 11)
    # Along the ramp the edge steps by 1 and the inside by 0.1; across it all steps are 0, a tie.
    assert measure_seam(ramp) == pytest.approx(((10 + 1) / 2, (1 + 0.5) / 2))
    assert measure_seam(ramp.mT) == pytest.approx(((10 + 1) / 2, (1 + 0.5) / 2))
    both = torch.linspace(0, 1, 11) + torch.linspace(0, 2, 7)[:, None]
    # Down the picture the edge steps by 2 and the inside by 1/3.
    assert measure_seam(both.expand(3, 7, 11)) == pytest.approx(((10 + 6) / 2, 1))
    assert measure_seam(torch.full((3, 5, 6), 0.5)) == (1, 0.5)


def test_the_seam_of_a_literal_loop(grain: Tensor) -> None:
    ratios: list[float] = []
    shares: list[float] = []
    for picture in (grain, grain.mT):
        width = picture.shape[2]
        steps = [
            float((picture[:, :, column] - picture[:, :, column - 1]).abs().mean())
            for column in range(width)
        ]
        edge, inside = steps[0], steps[1:]
        ratios.append(edge / (sum(inside) / len(inside)))
        shares.append(sum(step < edge for step in inside) / len(inside))
    expected = (sum(ratios) / 2, sum(shares) / 2)
    assert measure_seam(grain) == pytest.approx(expected, rel=1e-5)


def test_diversity_is_0_of_equal_and_1_of_unrelated_pictures(grain: Tensor) -> None:
    assert measure_seed_diversity(grain.expand(2, -1, -1, -1)) == 0
    noise = torch.rand(3, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    assert measure_seed_diversity(noise) == pytest.approx(1, abs=0.05)
    assert measure_seed_diversity(torch.full((2, 3, 4, 5), 0.3)) == 0
    # Two equal pictures of three: two of the three pairs differ.
    two_equal = noise[[0, 0, 1]]
    unrelated = 2 * (two_equal - two_equal.mean((0, 2, 3), keepdim=True)).square().mean()
    difference = (noise[0] - noise[1]).square().mean() * 2 / 3
    expected = float((difference / unrelated).sqrt())
    assert measure_seed_diversity(two_equal) == pytest.approx(expected, rel=1e-4)


# ── memory ──


def test_tables_of_windows_are_counted_to_the_byte(grain: Tensor) -> None:
    windows, _ = extract_windows(grain, 7)
    assert estimate_exemplar_memory("efros_leung", (30, 34), (64, 60), 7) == pytest.approx(
        2 * windows.nbytes / 1e9
    )
    search = PatchMatch(grain, (20, 24), 7, torch.Generator())
    patches = search.extract_patches(torch.rand(3, 20, 24))
    assert estimate_exemplar_memory("patchmatch", (30, 34), (20, 24), 7) == pytest.approx(
        (2 * search.table.nbytes + 5 * patches.nbytes) / 1e9
    )


@pytest.mark.parametrize("method", ["efros_leung", "wei_levoy", "patchmatch"])
def test_larger_windows_and_exemplars_need_more(method: str) -> None:
    needs = [
        estimate_exemplar_memory(method, (side, side), (256, 200), window)
        for side, window in ((64, 7), (64, 13), (128, 13))
    ]
    assert needs == sorted(set(needs))
    assert estimate_exemplar_memory("quilting", (64, 64), (8192, 8192), 16) == 0
