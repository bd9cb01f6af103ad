"""CKA against the definition with kernels of images × images, in double precision."""

import numpy as np
import pytest
from numpy.typing import NDArray

from sightline.methods.diagnosis.similarity import cka
from sightline.methods.diagnosis.similarity.cka import (
    compute_cka_matrix,
    find_best_matches,
)

RNG = np.random.default_rng(3)


def derive_hsic(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Song et al. 2012, equation 5, sum by sum, without centering."""
    n = len(x)
    k = x @ x.T
    m = y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    ones = np.ones(n)
    total = np.trace(k @ m)
    total += (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
    total -= 2 / (n - 2) * (ones @ k @ m @ ones)
    return float(total / (n * (n - 3)))


def derive_cka(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    return derive_hsic(x, y) / (derive_hsic(x, x) * derive_hsic(y, y)) ** 0.5


@pytest.mark.parametrize(("images", "shift"), [(5, 0.0), (40, 3.0), (1500, -20.0)])
def test_it_is_the_definition(images: int, shift: float) -> None:
    x = RNG.normal(size=(images, 7)) + shift
    y = np.maximum(0, x @ RNG.normal(size=(7, 11))) + RNG.normal(size=(images, 11)) + 1
    expected = derive_cka(x, y)
    matrix = compute_cka_matrix({"a": x, "b": y}, {"c": y.astype(np.float32)})
    assert matrix.shape == (2, 1)
    assert matrix[0, 0] == pytest.approx(expected, abs=2e-5)
    assert matrix[1, 0] == pytest.approx(1, abs=1e-5)


def test_layers_are_multiplied_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    widths = (3, 9, 2, 4, 12)
    first = {f"a{width}": RNG.normal(size=(30, width)) + width for width in widths}
    second = {f"b{width}": first[f"a{width}"][:, :2] - RNG.normal(size=(30, 2)) for width in widths}
    second["wide"] = RNG.normal(size=(30, 17))
    done: list[tuple[int, int]] = []
    monkeypatch.setattr(cka, "GROUP_UNITS", 10)
    matrix = compute_cka_matrix(first, second, lambda *progress: done.append(progress))
    expected = [[derive_cka(x, y) for y in second.values()] for x in first.values()]
    assert matrix == pytest.approx(np.array(expected), abs=2e-5)
    assert done == [(1, 5), (2, 5), (4, 5), (5, 5)]


def test_permuted_scaled_and_rotated_units_are_the_same() -> None:
    x = np.maximum(0, RNG.normal(size=(300, 64))).astype(np.float16)
    rotation, _ = np.linalg.qr(RNG.normal(size=(64, 64)))
    for other in (x[:, RNG.permutation(64)], 3 * x.astype(np.float32), x @ rotation):
        assert compute_cka_matrix({"x": x}, {"y": other})[0, 0] == pytest.approx(1, abs=1e-5)


def test_unrelated_layers_are_at_0_on_average() -> None:
    first = {str(number): RNG.normal(size=(60, 200)) for number in range(8)}
    second = {str(number): RNG.normal(size=(60, 150)) for number in range(5)}
    values = compute_cka_matrix(first, second)
    assert abs(np.mean(values)) < 4 * np.std(values) / values.size**0.5 + 0.002
    assert abs(np.mean(values)) < 0.03  # the biased estimate is at about 0.75 here


def test_a_constant_layer_has_none() -> None:
    x = RNG.normal(size=(20, 3))
    matrix = compute_cka_matrix(
        {"x": x, "dead": np.ones((20, 2))}, {"y": x, "dead": np.ones((20, 4))}
    )
    assert np.isnan(matrix[1]).all()
    assert np.isnan(matrix[:, 1]).all()
    assert find_best_matches(matrix).tolist() == [0, -1]


def test_too_few_images() -> None:
    with pytest.raises(ValueError, match="3 images; CKA needs 4"):
        compute_cka_matrix({"x": np.eye(3)}, {"y": np.eye(3)})
