"""Gray images, for networks that see the luminance of what they are shown."""

from torch import Tensor

from sightline.models.network.preprocessing import convert_to_luminance
from sightline.optim.parameterizations.fourier import Parameterization


class GrayImage:
    """Another parameterization's images in gray, as three equal channels.

    A network that sees luminance can't ask for a colour. Images of one channel are repeated, of
    three only their luminance is kept.
    """

    def __init__(self, levels: Parameterization) -> None:
        self.levels = levels
        self.parameters = levels.parameters

    def __call__(self) -> Tensor:
        return make_gray_picture(self.levels())

    def project_(self) -> None:
        """Projects the levels onto what is allowed."""
        self.levels.project_()


def make_gray_picture(image: Tensor) -> Tensor:
    """N×3×H×W with three equal channels, of gray levels N×1×H×W or an image N×3×H×W."""
    levels = image if image.shape[1] == 1 else convert_to_luminance(image).clamp(0, 1)
    return levels.expand(-1, 3, -1, -1)
