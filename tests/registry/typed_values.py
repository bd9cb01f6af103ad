"""What a user writes with values of a result. `make types` and test_result.py check its types."""

import sightline as sl


def read_size(result: sl.Result) -> int:
    """The shape of a value is known to have integers."""
    size: int = result.values["drop"].shape[0]
    return size
