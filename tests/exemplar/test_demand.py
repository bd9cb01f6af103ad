"""What the classical ways need is what their tables take."""

import pytest
import torch

from sightline.exemplar.demand import gigabytes
from sightline.exemplar.efros_leung import windows_of
from sightline.exemplar.patchmatch import PatchMatch


def test_tables_of_windows_are_counted_to_the_byte() -> None:
    exemplar = torch.rand(3, 30, 34)
    table, _ = windows_of(exemplar, 7)
    assert gigabytes("efros_leung", (30, 34), (64, 64), 7) == pytest.approx(2 * table.nbytes / 1e9)
    search = PatchMatch(exemplar, (20, 24), 7, torch.Generator())
    asked = search.patches(torch.rand(3, 20, 24))
    assert gigabytes("patchmatch", (30, 34), (20, 24), 7) == pytest.approx((2 * search.table.nbytes + 5 * asked.numel() * 4) / 1e9)


@pytest.mark.parametrize("method", ["efros_leung", "wei_levoy", "patchmatch"])
def test_larger_windows_and_exemplars_need_more(method: str) -> None:
    needs = [gigabytes(method, (side, side), (256, 256), window) for side, window in ((64, 7), (64, 13), (128, 13))]
    assert needs == sorted(needs)
    assert gigabytes("quilting", (64, 64), (8192, 8192), 16) == 0
