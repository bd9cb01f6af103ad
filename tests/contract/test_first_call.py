"""What a first call costs beside its own work: no method imports torch's compiler, and a map of an
image needs no matplotlib.
"""

import json
import subprocess
import sys

import pytest

# Each of these takes from half a second to two: symbolic shapes bring SymPy along.
EXPENSIVE_MODULES = (
    "torch._dynamo",
    "torch.fx.experimental.symbolic_shapes",
    "torch.distributed.tensor",
)
# A tenth of a second; charts need it.
CHART_MODULES = ("matplotlib",)

SCRIPT = """
import json, sys
import torch
import sightline as sl
from sightline.methods import load_methods

network = torch.nn.Sequential(
    torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
    torch.nn.Conv2d(6, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
    torch.nn.Flatten(), torch.nn.Linear(4, 3),
)
model = sl.load(network, size=48)
image = torch.rand(1, 3, 48, 48)
found = {}
for name in sys.argv[2:]:
    before = set(sys.modules)
    method = load_methods()[name]
    subject = [image] if method.subject == "image" else ["0"] if method.subject else []
    settings = {key: value for key, value in method.quick_parameters.items() if key != "k"}
    method.function(model, *subject, **settings)
    found[name] = sorted((set(sys.modules) - before) & set(json.loads(sys.argv[1])))

class Cut(torch.nn.Module):  # its answer, which autograd does not follow, takes one more look
    def forward(self, x):
        with torch.no_grad():
            return network(x).sigmoid()

before = set(sys.modules)
assert sl.load(Cut().eval(), size=48).output_kind == "multilabel"
found["a cut network"] = sorted((set(sys.modules) - before) & set(json.loads(sys.argv[1])))
print(json.dumps(found))
"""

MAP_METHODS = ("saliency", "occlusion", "rise", "gradcam", "guided", "segment")
METHODS = (
    *MAP_METHODS,
    "trust",
    *("synthesis", "inversion", "deepdream", "adversarial", "style"),
)


@pytest.fixture(scope="module")
def imported_by_method() -> dict[str, list[str]]:
    """The expensive modules that each method was the first to import, all in one new process."""
    modules = json.dumps((*EXPENSIVE_MODULES, *CHART_MODULES))
    command = [sys.executable, "-c", SCRIPT, modules, *METHODS]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


@pytest.mark.parametrize("name", [*METHODS, "a cut network"])
def test_nothing_imports_the_compiler(name: str, imported_by_method: dict[str, list[str]]) -> None:
    assert not set(imported_by_method[name]) & set(EXPENSIVE_MODULES)


@pytest.mark.parametrize("name", MAP_METHODS)
def test_a_map_of_an_image_needs_no_matplotlib(
    name: str, imported_by_method: dict[str, list[str]]
) -> None:
    assert not set(imported_by_method[name]) & set(CHART_MODULES)
