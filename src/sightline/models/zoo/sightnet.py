"""The embedded network: a small plain network, made for explanations.

Nine convolutions with ReLU, max pooling, global average pooling and one linear layer. It has no
branch, no shortcut and no normalization at inference (batch norm is folded into the convolutions
after training), so deconvnet, guided backpropagation and CAM apply to it exactly as their papers
state them.
"""

from collections import OrderedDict

from torch import nn

SIGHTNET_MEAN = (0.485, 0.456, 0.406)
SIGHTNET_STD = (0.229, 0.224, 0.225)

SIGHTNET_SIZE = 160

SIGHTNET_LABELS = (
    "tench",
    "English springer",
    "cassette player",
    "chain saw",
    "church",
    "French horn",
    "garbage truck",
    "gas pump",
    "golf ball",
    "parachute",
)

# Output channels of each convolution.
SIGHTNET_WIDTHS = {
    "conv1": 64,
    "conv2_1": 96,
    "conv2_2": 96,
    "conv3_1": 160,
    "conv3_2": 160,
    "conv4_1": 256,
    "conv4_2": 256,
    "conv5_1": 256,
    "conv5_2": 256,
}

# The convolutions before a max pooling.
SIGHTNET_POOLED_LAYERS = ("conv1", "conv2_2", "conv3_2")


def make_sightnet(classes: int = 10, batch_norm: bool = False) -> nn.Sequential:
    """Builds the network with random weights; `batch_norm` adds the layers used in training only.

    Input N×3×H×W, normalized by mean and std, H and W at least 32 (made for 128 to 160); output
    N×classes.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for name, width in SIGHTNET_WIDTHS.items():
        if name == "conv1":
            conv = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=not batch_norm)
        else:
            conv = nn.Conv2d(channels, width, 3, padding=1, bias=not batch_norm)
        layers[name] = conv
        if batch_norm:
            layers[name.replace("conv", "bn")] = nn.BatchNorm2d(width)
        layers[name.replace("conv", "relu")] = nn.ReLU()
        if name in SIGHTNET_POOLED_LAYERS:
            block = name[4]  # conv2_2 belongs to block 2
            layers[f"pool{block}"] = nn.MaxPool2d(3, stride=2, padding=1)
        channels = width
    layers["gap"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(channels, classes)
    return nn.Sequential(layers)
