"""The methods, one topic a file. The order here is the lecture's, and the report's."""

TOPICS = (
    "predictions",
    "weights.filters",
    "analytical.activations",
    "analytical.saliency",
    "analytical.occlusion",
    "analytical.rise",
    "analytical.cam",
    "analytical.attention",
    "analytical.segment",
    "analytical.guided",
    "analytical.trust",
    "analytical.pointing",
    "generative.synthesis",
    "generative.adversarial",
    "artistic.deepdream",
    "artistic.texture",
    "artistic.style",
)
