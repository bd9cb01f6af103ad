"""The pointing game: in grids of four photographs, do the maps of a photograph's class point at that photograph?"""

from pathlib import Path

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

result = sl.pointing(sl.load())
sl.write(result.panels["maps"], PICTURES / "pointing.png")
sl.write(result.panels["pointing"], PICTURES / "pointing_shares.png")
