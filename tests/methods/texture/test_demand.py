"""What the classical ways need is what their tables take."""

import pytest
import torch

from sightline.methods.texture.efros_leung import extract_windows
from sightline.methods.texture.metrics import estimate_exemplar_memory
from sightline.methods.texture.patchmatch import PatchMatch


def test_tables_of_windows_are_counted_to_the_byte() -> None:
    exemplar = torch.rand(3, 30, 34)
    table, _ = extract_windows(exemplar, 7)
    assert estimate_exemplar_memory("efros_leung", (30, 34), (64, 64), 7) == pytest.approx(
        2 * table.nbytes / 1e9
    )
    search = PatchMatch(exemplar, (20, 24), 7, torch.Generator())
    asked = search.extract_patches(torch.rand(3, 20, 24))
    assert estimate_exemplar_memory("patchmatch", (30, 34), (20, 24), 7) == pytest.approx(
        (2 * search.table.nbytes + 5 * asked.numel() * 4) / 1e9
    )


@pytest.mark.parametrize("method", ["efros_leung", "wei_levoy", "patchmatch"])
def test_larger_windows_and_exemplars_need_more(method: str) -> None:
    needs = [
        estimate_exemplar_memory(method, (side, side), (256, 256), window)
        for side, window in ((64, 7), (64, 13), (128, 13))
    ]
    assert needs == sorted(needs)
    assert estimate_exemplar_memory("quilting", (64, 64), (8192, 8192), 16) == 0
