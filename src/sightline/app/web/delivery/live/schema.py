"""What the live tab asks the server, and what it answers, as JSON."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_RECTANGLES = 64
MAX_BRUSH_CHARACTERS = 1_000_000
MAX_LAYERS_OFF = 256
MAX_UNITS_OFF = 65_536
MAX_SHOWN_UNITS = 64

AttributionName = Literal["saliency", "gradient_input", "guided", "gradcam"]

ImageName = Annotated[str, Field(pattern=r"^(s-[0-9]{1,12}|u-[A-Za-z0-9_-]{16,64})$")]
PixelEdge = Annotated[int, Field(ge=0, le=100_000)]
UnitIndex = Annotated[int, Field(ge=0, le=2**31 - 1)]
LayerText = Annotated[str, Field(max_length=1000)]


class LiveModel(BaseModel):
    """Common settings: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")


class LiveImage(LiveModel):
    """An image that was sent, as the server knows it.

    Attributes:
        image: Its name in further requests.
        height, width: Of the picture that was sent.
        size: Height and width of what the network sees of it.
    """

    image: str
    height: int
    width: int
    size: tuple[int, int]


class LiveRequest(LiveModel):
    """A change of an image or of the network, whose answer is asked for.

    Attributes:
        image: «s-ID», an image of the scan, or the name of one that was sent.
        cover: Rectangles of what the network sees that are made gray: top, left, bottom, right
            (exclusive), in pixels.
        brush: Pixels that are made gray: bits in rows of the image, eight to a byte, the first
            the highest, as Base64.
        off: Units that are switched off, by layer.
        layer: Whose strongest units are shown; None for those of all layers.
        units: How many are shown.
        attribution: A method whose attribution of the answer is asked for.
    """

    image: ImageName
    cover: Annotated[
        list[tuple[PixelEdge, PixelEdge, PixelEdge, PixelEdge]], Field(max_length=MAX_RECTANGLES)
    ] = []
    brush: Annotated[str, Field(max_length=MAX_BRUSH_CHARACTERS)] | None = None
    off: Annotated[
        dict[LayerText, Annotated[list[UnitIndex], Field(max_length=MAX_UNITS_OFF)]],
        Field(max_length=MAX_LAYERS_OFF),
    ] = {}
    layer: LayerText | None = None
    units: Annotated[int, Field(ge=1, le=MAX_SHOWN_UNITS)] = 12
    attribution: AttributionName | None = None


class ClassAnswer(LiveModel):
    """A class and its probability."""

    index: int
    label: str
    probability: float


class UnitActivity(LiveModel):
    """How strong a unit is, alone and as a share of its strongest response in the scan."""

    layer: str
    unit: int
    value: float
    share_of_max: float
    link: str


class ActivationMap(LiveModel):
    """A unit's map: rows×columns bytes as Base64; 0 stands for `low`, 255 for `high`."""

    layer: str
    unit: int
    rows: int
    columns: int
    low: float
    high: float
    bytes: str


class AttributionMap(LiveModel):
    """An attribution of the answer's class: height×width bytes as Base64.

    Where it is signed, 0 stands for −limit, 128 for zero and 255 for limit; else 0 for zero and 255
    for limit. Values beyond the limit, the 99.5th percentile, are cut.
    """

    name: str
    label: str
    height: int
    width: int
    limit: float
    signed: bool
    bytes: str


class LiveAnswer(LiveModel):
    """What the network makes of a changed image.

    Attributes:
        answer: The most probable classes, best first; empty for a network without classes.
        clean: The same without cover and with all units on.
        units: The strongest units, by their share of their strongest response in the scan.
        layers: The strongest units of each layer, by the layer's name.
        maps: Of `units`, where the layer has positions.
        seconds: That the answer took.
    """

    answer: list[ClassAnswer]
    clean: list[ClassAnswer]
    units: list[UnitActivity]
    layers: dict[str, list[UnitActivity]]
    maps: list[ActivationMap]
    attribution: AttributionMap | None
    size: tuple[int, int]
    seconds: float


class LiveLayer(LiveModel):
    """A layer of the scan, and how many units it has."""

    name: str
    units: int


class LiveState(LiveModel):
    """What the live tab can ask for."""

    network: str
    size: tuple[int, int]
    layers: list[LiveLayer]
    attributions: list[AttributionName]
    images: int
    max_bytes: int


class LiveError(LiveModel):
    """Why a request is refused, in one line."""

    error: str
