"""Pointing game
=============

The pointing game on grids of four photographs: do attributions point at the class asked for?
"""

from pathlib import Path

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

result = sl.pointing(sl.load())
sl.write(result.panels["maps"], PICTURES / "pointing.png")
sl.write(result.panels["pointing"], PICTURES / "pointing_shares.png")
