"""The names of the sample pictures, for those who need no picture yet."""

# Drawn by `training/draw_golf_ball.py`.
DRAWN_SAMPLE = "golf_ball"

# What a method looks at where no image is given: the embedded network knows it.
DEFAULT_SAMPLE = DRAWN_SAMPLE

# Photographs and textures of scikit-image, and the drawing.
SAMPLE_NAMES = (
    "rocket",
    "chelsea",
    "astronaut",
    "coffee",
    "motorcycle_left",
    "hubble_deep_field",
    "retina",
    "ihc",
    "brick",
    "grass",
    "gravel",
    DRAWN_SAMPLE,
)
