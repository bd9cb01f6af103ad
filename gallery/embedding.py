"""Tiles of the sample photographs, laid out by t-SNE of the embedded network's features."""

from pathlib import Path

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

result = sl.embedding(sl.load())
sl.write(result.panels["embedding"], PICTURES / "embedding.jpg")
