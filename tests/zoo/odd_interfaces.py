"""Networks whose inputs or outputs are unusual, and what `sl.load` is told about each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from zoo.backbone import CLASSES, WIDTH, Backbone, Classifier, make_head

SIDE = 32

# ── outputs ──


class Sigmoid(Classifier):
    """One probability."""

    def __init__(self) -> None:
        super().__init__(classes=1)

    def forward(self, image: Tensor) -> object:
        """N×1."""
        return self.head(self.pool_features(image)).sigmoid()


class Softmax(Classifier):
    """Probabilities that add up to 1."""

    def forward(self, image: Tensor) -> object:
        """N×5."""
        return self.head(self.pool_features(image)).softmax(1)


class FlatRegression(Classifier):
    """One number for each image, without an axis of its own."""

    def __init__(self) -> None:
        super().__init__(classes=1)

    def forward(self, image: Tensor) -> object:
        """N."""
        return self.head(self.pool_features(image))[:, 0]


class Embedding(Classifier):
    """Features of length 1."""

    def forward(self, image: Tensor) -> object:
        """N×8."""
        return functional.normalize(self.pool_features(image), dim=1)


class Dense(nn.Module):
    """Scores at every pixel, as segmentation gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.classify = nn.Conv2d(WIDTH, CLASSES, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """N×5×H×W."""
        scores = self.classify(self.backbone(image))
        return {"out": functional.interpolate(scores, image.shape[2:])}


class Positions(Classifier):
    """Scores at each position of the map."""

    def forward(self, image: Tensor) -> object:
        """N×P×5."""
        return self.head(self.backbone(image).flatten(2).transpose(1, 2))


class TimeFirst(Classifier):
    """Scores at each column, which come first, as networks that read text give them."""

    def forward(self, image: Tensor) -> object:
        """T×N×5."""
        return self.head(self.backbone(image).mean(2).permute(2, 0, 1))


class Detector(nn.Module):
    """Two boxes in each image, in a list of dicts as torchvision gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.head = make_head(2)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """One dict for each image."""
        scores = self.head(self.backbone(torch.stack(list(images))).mean((2, 3))).sigmoid()
        boxes = torch.tensor([[2.0, 3, 20, 20], [8.0, 4, 30, 28]])
        labels = torch.tensor([1, 3])
        return [{"boxes": boxes, "labels": labels, "scores": row} for row in scores]


class NestedDict(Classifier):
    """Scores that lie two keys deep, beside others."""

    def forward(self, image: Tensor) -> object:
        """The scores are at `heads.kind`."""
        features = self.backbone(image)
        return {"features": features, "heads": {"kind": self.head(features.mean((2, 3)))}}


class Scores(NamedTuple):
    """What `NamedTupleOutput` gives."""

    logits: Tensor
    features: Tensor


class NamedTupleOutput(Classifier):
    """A named tuple."""

    def forward(self, image: Tensor) -> object:
        """Logits and features."""
        features = self.backbone(image)
        return Scores(self.head(features.mean((2, 3))), features)


@dataclass
class Answer:
    """What `DataclassOutput` gives."""

    logits: Tensor
    loss: Tensor | None = None


class DataclassOutput(Classifier):
    """An object of its own class."""

    def forward(self, image: Tensor) -> object:
        """Logits as an attribute."""
        return Answer(self.head(self.pool_features(image)))


class Squeezed(Classifier):
    """Loses the axis of the images where there is one image."""

    def forward(self, image: Tensor) -> object:
        """N×5, or 5."""
        return self.head(self.pool_features(image)).squeeze()


class PixelScores(Dense):
    """One score at every pixel, without an axis of classes."""

    def forward(self, image: Tensor) -> Tensor:  # type: ignore[override]
        """N×H×W."""
        return super().forward(image)["out"][:, 2]


class DenseClassesLast(Dense):
    """Scores at every pixel, as networks from other frameworks give them."""

    def forward(self, image: Tensor) -> Tensor:  # type: ignore[override]
        """N×H×W×5."""
        return super().forward(image)["out"].permute(0, 2, 3, 1)


class ObjectOutput(Classifier):
    """An object with attributes, of a class that is no dataclass."""

    def forward(self, image: Tensor) -> object:
        """Features and logits."""
        answer = SimpleNamespace()
        answer.features = self.backbone(image)
        answer.logits = self.head(answer.features.mean((2, 3)))
        return answer


class BatchDetector(Detector):
    """The boxes of all images in one dict, as exported detectors give them."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        """Boxes N×2×4, scores and labels N×2."""
        detections = super().forward(list(images))
        return {name: torch.stack([item[name] for item in detections]) for name in detections[0]}


# ── inputs ──


class ByNameOnly(Classifier):
    """Takes the image by name."""

    def forward(self, *, pixel_values: Tensor) -> object:  # type: ignore[override]
        """The logits."""
        return super().forward(pixel_values)


class ImageAndNumber(Classifier):
    """Takes the age beside the image."""

    def forward(self, image: Tensor, age: Tensor) -> Tensor:  # type: ignore[override]
        """The logits."""
        return self.head(self.pool_features(image)) + age.reshape(-1, 1) / 100


class Siamese(Classifier):
    """Compares two images."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:  # type: ignore[override]
        """How near each image is to the other, N×1."""
        distance = self.pool_features(left) - self.pool_features(right)
        return -distance.square().sum(1, keepdim=True)


class DictInput(Classifier):
    """Takes a dict that holds the image."""

    def forward(self, batch: Mapping[str, Tensor]) -> object:  # type: ignore[override]
        """The logits."""
        return super().forward(batch["pixels"])


def put_in_dict(image: Tensor) -> dict[str, Tensor]:
    """What `DictInput` takes."""
    return {"pixels": image}


class ChannelsLast(Classifier):
    """Takes N×H×W×3, as networks from other frameworks do."""

    def forward(self, image: Tensor) -> object:
        """The logits."""
        return super().forward(image.permute(0, 3, 1, 2))


class WideRange(Classifier):
    """Takes blue, green, red from 0 to 255."""

    def forward(self, image: Tensor) -> object:
        """The logits."""
        return super().forward(image / 128 - 1)


class FixedSize(nn.Module):
    """Takes 24×40 pixels and no others."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.head = nn.Linear(WIDTH * 12 * 20, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """The logits."""
        return self.head(self.backbone(image).flatten(1))


class Video(nn.Module):
    """Takes N×3×T×H×W."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(3, WIDTH, 3)
        self.head = make_head(CLASSES)

    def forward(self, video: Tensor) -> Tensor:
        """The logits."""
        return self.head(self.convolution(video).relu().mean((2, 3, 4)))


@dataclass(frozen=True)
class OddInterface:
    """A network and the arguments that `sl.load` needs for it."""

    build: Callable[[], nn.Module]
    options: Mapping[str, Any]


def make_with_channels(channels: int) -> OddInterface:
    """A classifier of images with so many channels."""
    options = {"mean": [0.4] * channels, "std": [0.3] * channels}
    return OddInterface(lambda: Classifier(channels), options)


OTHER_IMAGE = torch.linspace(0, 1, 3 * SIDE * SIDE).reshape(1, 3, SIDE, SIDE)

ODD_INTERFACES: dict[str, OddInterface] = {
    "one_logit": OddInterface(lambda: Classifier(classes=1), {}),
    "sigmoid": OddInterface(Sigmoid, {}),
    "softmax": OddInterface(Softmax, {}),
    "multilabel": OddInterface(Classifier, {"multilabel": True}),
    "regression_flat": OddInterface(FlatRegression, {"output_kind": "regression"}),
    "regression_column": OddInterface(
        lambda: Classifier(classes=1), {"output_kind": "regression", "unit": "years"}
    ),
    "embedding": OddInterface(Embedding, {}),
    "dense": OddInterface(Dense, {}),
    "positions": OddInterface(Positions, {}),
    "time_first": OddInterface(TimeFirst, {}),
    "squeezed": OddInterface(Squeezed, {}),
    "pixel_scores": OddInterface(PixelScores, {}),
    "dense_classes_last": OddInterface(DenseClassesLast, {}),
    "object_output": OddInterface(ObjectOutput, {}),
    "detections": OddInterface(Detector, {}),
    "batch_detections": OddInterface(BatchDetector, {}),
    "by_name_only": OddInterface(ByNameOnly, {}),
    "nested_dict": OddInterface(NestedDict, {"output": "heads.kind"}),
    "named_tuple": OddInterface(NamedTupleOutput, {}),
    "dataclass": OddInterface(DataclassOutput, {}),
    "two_inputs": OddInterface(ImageAndNumber, {"inputs": {"age": 40.0}}),
    "siamese": OddInterface(Siamese, {"inputs": {"right": OTHER_IMAGE}}),
    "dict_input": OddInterface(DictInput, {"preprocess": put_in_dict}),
    "nhwc": OddInterface(ChannelsLast, {"preprocess": "nhwc"}),
    "bgr_0_255": OddInterface(WideRange, {"preprocess": "bgr 0..255"}),
    "channels_1": make_with_channels(1),
    "channels_2": make_with_channels(2),
    "channels_5": make_with_channels(5),
    "channels_13": make_with_channels(13),
    "fixed_24x40": OddInterface(FixedSize, {"size": (24, 40)}),
    "video": OddInterface(Video, {}),
}
