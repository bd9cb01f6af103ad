"""The first Ctrl-C asks a run to stop; one that can't wait, and the second, end it."""

import signal

import pytest
import torch
from rich.progress import Progress

from sightline.app.cli.terminal import (
    StepProgressBar,
    handle_interrupts,
    make_progress_display,
    show_progress_bar,
)
from sightline.registry.progress import Step


class Ended(Exception):  # noqa: N818 - not an error
    """The command was ended."""


def end_command(_number: int, _frame: object) -> None:
    raise Ended


@pytest.fixture
def bar() -> StepProgressBar:
    return StepProgressBar(make_progress_display("", quiet=True), "saliency", end_command)


def test_the_bar_shows_the_last_step(bar: StepProgressBar) -> None:
    image = torch.zeros(1, 3, 2, 2)
    for index in (1, 2):
        assert bar.on_step(Step(index, 5, torch.zeros(1), image)) is False
    assert not bar.update_display(3, 7, "other title")
    (task,) = bar.display.tasks
    assert (task.completed, task.total, task.description) == (3, 7, "other title")


def test_the_first_interrupt_stops_after_a_step_and_the_second_ends(bar: StepProgressBar) -> None:
    bar.update_display(1, 5, "")
    bar.handle_interrupt(signal.SIGINT, None)
    assert bar.update_display(2, 5, "") is True
    with pytest.raises(Ended):
        bar.handle_interrupt(signal.SIGINT, None)


def test_before_the_first_step_an_interrupt_ends(bar: StepProgressBar) -> None:
    with pytest.raises(Ended):
        bar.handle_interrupt(signal.SIGINT, None)
    assert not bar.stopped


def test_interrupts_go_back_to_who_had_them() -> None:
    previous = signal.getsignal(signal.SIGINT)
    with handle_interrupts(end_command), pytest.raises(Ended):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is previous

    def fail_while_handling() -> None:
        with handle_interrupts(end_command):
            raise ValueError("failed")

    with pytest.raises(ValueError, match="failed"):
        fail_while_handling()
    assert signal.getsignal(signal.SIGINT) is previous


def test_a_bar_handles_interrupts_while_its_block_runs() -> None:
    with handle_interrupts(end_command):
        with show_progress_bar("rise", quiet=True) as bar:
            bar.update_display(1, 2, "rise")
            signal.raise_signal(signal.SIGINT)
            assert bar.stopped
            with pytest.raises(Ended):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is end_command


def test_where_no_terminal_is_nothing_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    with make_progress_display("{task.description}", quiet=False) as display:
        assert isinstance(display, Progress)
        display.add_task("visible", total=2)
        display.refresh()
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
