"""The adapter to other libraries' attacks: what they are told, and what is refused."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sightline as sl
from sightline.methods.adversarial.attacks import external
from sightline.methods.adversarial.attacks.external import (
    LogitsModule,
    find_attack_class,
    run_peer_attack,
)
from sightline.methods.adversarial.attacks.goal import AttackGoal
from sightline.methods.adversarial.attacks.norm_ball import NormBall


def test_the_module_gives_the_models_logits_and_gradients(
    conv: sl.Model, conv_images: Tensor
) -> None:
    module = LogitsModule(conv).eval()
    assert torch.equal(module(conv_images), conv.logits(conv_images))
    assert next(module.parameters()).device == conv.device
    leaf = conv_images.contiguous(memory_format=torch.channels_last).requires_grad_()
    module(leaf).square().sum().backward()
    reference = conv_images.clone().requires_grad_()
    conv.logits(reference).square().sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.abs().sum() > 0
    torch.testing.assert_close(leaf.grad, reference.grad)


@pytest.mark.parametrize("name", ["foolbox", "foolbox:", "art:PGD", ":PGD", ""])
def test_names_of_no_library_are_refused(name: str) -> None:
    with pytest.raises(sl.SightlineError, match="must be foolbox:NAME or torchattacks:NAME"):
        find_attack_class(name)


def test_unknown_attacks_are_refused_with_a_suggestion() -> None:
    pytest.importorskip("foolbox")
    with pytest.raises(sl.SightlineError, match="did you mean L2FMNAttack"):
        find_attack_class("foolbox:L2FMNAtack")


@pytest.mark.parametrize(
    ("library", "requirement"),
    [("foolbox", r"sightline\[attacks\]"), ("torchattacks", "torchattacks")],
)
def test_a_library_that_is_not_installed_is_named(
    library: str, requirement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, external.ATTACK_LIBRARIES[library], None)
    with pytest.raises(sl.SightlineError, match=f"needs {library}.*pip install '{requirement}'"):
        find_attack_class(f"{library}:PGD")


class RecordingAttack:
    """Takes what torchattacks' attacks take, and brightens the images by a random value."""

    calls: list[dict[str, Any]]

    def __init__(self, model: nn.Module, eps: float = 0.1, steps: int = 3, seed: int = 9) -> None:
        self.call = {"eps": eps, "steps": steps, "seed": seed}
        self.calls.append(self.call)

    def set_mode_targeted_by_label(self, quiet: bool) -> None:
        self.call["targeted"] = True

    def __call__(self, image: Tensor, labels: Tensor) -> Tensor:
        self.call["labels"] = labels.tolist()
        self.call["contiguous"] = image.is_contiguous()
        return image + 0.01 * torch.rand(())


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> type[RecordingAttack]:
    RecordingAttack.calls = []
    monkeypatch.setitem(external.ATTACK_LIBRARIES, "torchattacks", "recording_library")
    module = SimpleNamespace(Recording=RecordingAttack)
    monkeypatch.setitem(sys.modules, "recording_library", module)  # type: ignore[arg-type]
    return RecordingAttack


def test_an_attack_gets_what_it_takes(
    recording: type[RecordingAttack], conv: sl.Model, conv_images: Tensor, conv_targets: AttackGoal
) -> None:
    rows = torch.arange(3)
    goal = conv_targets.select_images(rows)
    image = conv_images[rows].contiguous(memory_format=torch.channels_last)
    name = "torchattacks:Recording"
    untargeted = AttackGoal(goal.source_labels)
    run_peer_attack(name, conv, NormBall(image, 0.2, "l2"), untargeted, steps=7, seed=4)
    run_peer_attack(name, conv, NormBall(image, float("inf"), "l2"), goal, steps=None, seed=4)
    first, second = recording.calls
    assert first == {
        "eps": 0.2,
        "steps": 7,
        "seed": 4,
        "labels": goal.source_labels.tolist(),
        "contiguous": True,
    }
    assert (second["eps"], second["steps"], second["targeted"]) == (0.1, 3, True)
    assert goal.target_labels is not None
    assert second["labels"] == goal.target_labels.tolist()


def test_the_seed_decides_and_the_random_state_is_restored(
    recording: type[RecordingAttack], conv: sl.Model, conv_images: Tensor, conv_goal: AttackGoal
) -> None:
    state = torch.get_rng_state()
    ball = NormBall(conv_images, 0.2, "linf")
    results = [
        run_peer_attack("torchattacks:Recording", conv, ball, conv_goal, steps=None, seed=seed)
        for seed in (1, 1, 2)
    ]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_what_an_attack_raises_is_told_in_one_line(
    recording: type[RecordingAttack],
    conv: sl.Model,
    conv_images: Tensor,
    conv_goal: AttackGoal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: object, image: Tensor, labels: Tensor) -> Tensor:
        raise AssertionError("needs 10 classes\nand more")

    monkeypatch.setattr(recording, "__call__", fail)
    ball = NormBall(conv_images, 0.2, "linf")
    with pytest.raises(
        sl.SightlineError, match=r"Recording can't attack Conv \(needs 10 classes\)"
    ):
        run_peer_attack("torchattacks:Recording", conv, ball, conv_goal, steps=None, seed=0)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("peer", ["foolbox:LinfPGD", "torchattacks:PGD"])
def test_both_libraries_reach_the_goal_within_the_radius(
    conv: sl.Model,
    conv_images: Tensor,
    conv_goal: AttackGoal,
    conv_targets: AttackGoal,
    *,
    peer: str,
    targeted: bool,
) -> None:
    pytest.importorskip(peer.split(":", maxsplit=1)[0])
    goal = conv_targets if targeted else conv_goal
    ball = NormBall(conv_images, 0.3 if targeted else 0.05, "linf")
    changed = run_peer_attack(peer, conv, ball, goal, steps=20, seed=0)
    assert (changed - conv_images).abs().max() <= ball.eps + 1e-6
    assert goal.is_reached(conv.logits(changed)).float().mean() > 0.8
    assert not changed.requires_grad
