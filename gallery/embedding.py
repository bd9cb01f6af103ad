"""Map of the images
=================

Parts of the sample pictures, laid out by t-SNE of the embedded network's features.
"""

from pathlib import Path

import sightline as sl
from sightline.images.transforms import resize_image

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

result = sl.embedding(sl.load())
sl.write(resize_image(result.panels["embedding"], 640, 640), PICTURES / "embedding.jpg")
