"""Changes are undone, the last first, unless they were made permanent."""

import torch

from sightline.data.scan.journal import ChangeJournal


def test_overlapping_changes_of_views_are_undone() -> None:
    tensor = torch.arange(12.0).view(3, 4)
    before = tensor.clone()
    journal = ChangeJournal()
    journal.assign(tensor, (slice(None), 1), torch.full((3,), -1.0))
    journal.assign(tensor[1], slice(0, 3), torch.tensor([7.0, 8.0, 9.0]))
    journal.assign(tensor, tensor > 8, torch.tensor(0.0))
    assert tensor[1].tolist() == [7, 8, 0, 7]
    journal.undo_changes()
    assert torch.equal(tensor, before)


def test_what_is_permanent_stays() -> None:
    tensor = torch.zeros(4)
    journal = ChangeJournal()
    journal.assign(tensor, 0, torch.tensor(1.0))
    journal.forget_changes()
    journal.assign(tensor, torch.tensor([1, 2]), torch.tensor([5.0, 6.0]))
    journal.undo_changes()
    assert tensor.tolist() == [1, 0, 0, 0]
    tensor[3] = 2
    journal.undo_changes()
    assert tensor.tolist() == [1, 0, 0, 2]


def test_values_made_in_inference_mode_are_undone() -> None:
    with torch.inference_mode():
        tensor = torch.zeros(2)
        journal = ChangeJournal()
        journal.assign(tensor, 1, torch.tensor(3.0))
    journal.undo_changes()
    assert tensor.tolist() == [0, 0]
