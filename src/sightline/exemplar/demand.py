"""What the classical ways hold in memory at their peak, estimated before they begin."""

import math


def estimate_exemplar_memory(method: str, exemplar: tuple[int, int], size: tuple[int, int], window: int) -> float:
    """For a picture of this size from an exemplar of that: the table of the exemplar's windows, what is made of it on the way, and
    (for "patchmatch") the windows of all output pixels at once. Quilting holds little more than both pictures."""
    windows = math.prod(length - window + 1 for length in exemplar)
    row = 4 * 3 * window**2
    if method == "efros_leung":
        return 2 * windows * row / 1e9
    if method == "wei_levoy":
        wave = min(size[0], 1 + 2 * size[1] // window)
        return windows * (3 * (row + 4 * 75) + 8 * wave) / 1e9
    if method == "patchmatch":
        return (2 * windows + 5 * math.prod(size)) * row / 1e9
    return 0.0
