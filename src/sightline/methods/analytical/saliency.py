"""Saliency by backpropagation: which pixels would change the score most? (Simonyan 2013, section 3)"""

import torch
from torch import Tensor

from ... import render
from ...catalog import method
from ...model import Model
from ...result import Result


@method(
    title="Saliency by backpropagation",
    question="Which pixels, changed a little, would change the class score most?",
    reading="Bright pixels have a large gradient of the score before the softmax. They gather on the object when the network looks at it.",
    caution="It is the slope at this image, not a share of the score. Single pixels are noisy; the bright region matters, not its texture.",
)
def saliency(model: Model, image: Tensor, *, label: int | str = "top") -> Result:
    """Gradient of a class score with respect to the image: magnitude, largest over the colours.

    `values["gradient"]` is signed and unscaled, N×3×H×W, per unit of [0, 1] pixel value; `values["saliency"]` N×H×W.
    """
    index = model.choose(label, image)
    gradient = score_gradient(model, image, index)
    map_ = gradient.abs().amax(1)
    # A few pixels hold the largest gradients; the scale ends at the 99th percentile so that the rest can be seen.
    limit = map_.flatten(1).quantile(0.99, dim=1)
    panel = render.beside(image, render.heat(map_, limit), render.over(image, map_, limit))
    named = ", ".join(model.labels[i] for i in index.tolist())
    caption = f"Image, |gradient| of the score of {named} (black is 0, brightest is the 99th percentile, {float(limit[0]):.3g}), and both."
    return Result({"saliency": panel}, {"gradient": gradient, "saliency": map_, "label": index}, {"saliency": caption})


def score_gradient(model: Model, image: Tensor, index: Tensor) -> Tensor:
    """∂(score before the softmax of class index[n])/∂image, N×3×H×W."""
    with torch.enable_grad():
        leaf = image.to(model.device).detach().requires_grad_()
        scores = model.run(leaf, ["logits"])["logits"].gather(1, index.view(-1, 1))
        return torch.autograd.grad(scores.sum(), leaf)[0].cpu()
