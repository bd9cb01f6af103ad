"""Class activation maps: which places of a layer speak for the class? (Zhou 2016; Selvaraju 2017)"""

import torch
from torch import Tensor

from ... import render
from ...catalog import method
from ...errors import SightlineError
from ...model import Model
from ...outputs import as_maps
from ...result import Result


@method(
    title="Grad-CAM",
    question="Which places of a deep layer speak for the class?",
    reading="Warm places hold features that raise the class score. In a network that ends in global average pooling and one linear layer, the last layer's "
    "map is exactly the class activation map.",
    caution="The map has only as many places as the layer and is enlarged smoothly; fine outlines in it mean nothing. Evidence against the class is cut off.",
)
def gradcam(model: Model, image: Tensor, *, label: int | str = "top", layer: str = "last_conv") -> Result:
    """Grad-CAM: ReLU(Σ_k mean(∂score/∂A_k) A_k) of a layer's channels A (Selvaraju 2017, eq. 1 and 2).

    `values["cam"]` is N×h×w at the layer's resolution, unscaled; `values["map"]` the same enlarged to N×H×W.
    Token layers of a transformer are laid on their grid.
    """
    index, name = model.choose(label, image), model.layer(layer)
    if name == "logits":
        raise SightlineError("the logits have no places; choose a convolutional layer, such as last_conv")
    with torch.enable_grad():
        leaf = image.to(model.device).detach().requires_grad_()
        found = model.run(leaf, [name, "logits"])
        scores = found["logits"].gather(1, index.view(-1, 1))
        gradient = torch.autograd.grad(scores.sum(), found[name])[0]
    maps, slopes = (as_maps(value.detach(), *image.shape[-2:]) for value in (found[name], gradient))
    cam = (slopes.flatten(2).mean(2)[:, :, None, None] * maps).sum(1).relu().cpu()
    enlarged = render.fit(cam, image.shape[-2:])
    panel = render.beside(image, render.heat(enlarged), render.over(image, enlarged))
    named = ", ".join(model.labels[i] for i in index.tolist())
    caption = f"Image, Grad-CAM of {named} at {layer} ({cam.shape[1]}×{cam.shape[2]} places, black 0, brightest {float(enlarged[0].max()):.3g}), and both."
    if not cam[0].any():
        caption += " The map is empty: no place of this layer raises the score."
    return Result({"gradcam": panel}, {"cam": cam, "map": enlarged, "label": index}, {"gradcam": caption})
