"""Maximally activating patches
============================

Maximally activating patches of one unit, their guided attributions, and average patches.
"""

from pathlib import Path

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

result = sl.patches(sl.load(), unit=7)
sl.write(result.panels["patches"], PICTURES / "patches.png")
