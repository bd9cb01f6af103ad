"""What drives one unit of a middle layer the most, with its guided maps, and its middle cases."""

from pathlib import Path

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

result = sl.patches(sl.load(), unit=7)
sl.write(result.panels["patches"], PICTURES / "patches.png")
