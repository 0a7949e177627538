"""What all commands share: options, lines on the terminal, progress."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from hamfast.errors import HamfastError

console = Console()

Folder = Annotated[Path, typer.Argument(help="a structure folder, or a data set of them")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ..., or auto")]
Level = Annotated[float, typer.Option(help="share of blocks that an uncertainty is to hold")]
Window = Annotated[tuple[float, float], typer.Option(help="eV around the Fermi level")]


def tell(label: str, style: str, text: str) -> None:
    """A line on stderr. ``text`` may hold brackets: paths and labels are no markup."""
    Console(stderr=True).print(Text.assemble((label, style), " ", text), soft_wrap=True)


def say(text: str) -> None:
    """A line on stdout, as it is: brackets are no markup, and long lines are not broken."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress(what: str, total: int):
    """Shows a bar with the time left while the block runs, if the output is a terminal.

    Yields the function that moves it on.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(escape(what), total=total)
        yield lambda: progress.advance(task)


class _Speed(ProgressColumn):
    """Atoms per second, counting each layer's pass over all of them as its share of one."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(
            "" if speed is None or "passes" not in task.fields else f"{speed / task.fields['passes']:.3g} atoms/s"
        )


@contextmanager
def pieces(structures: int):
    """Shows on a terminal how many of several structures are done, and how far those are that go
    through a network in pieces.

    Yields what :attr:`hamfast.analysis.in_pieces.Limits.report` is, and a function to be called
    after every structure.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), _Speed(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:

        def report(name: str, atoms: int, passes: int):
            task = progress.add_task(escape(name), total=atoms * passes, passes=passes)
            return lambda done: progress.advance(task, done)

        whole = progress.add_task("predicting", total=structures, visible=structures > 1)
        yield report, lambda: progress.advance(whole)


@contextmanager
def steps(what: str):
    """As :func:`progress`, where the number of steps is known later.

    Yields a function that takes it, and returns the function that moves the bar on.
    """
    with ExitStack() as stack:
        yield lambda total: stack.enter_context(progress(what, total))


def device_of(name: str) -> str:
    """The device that ``--device`` names; ``auto`` is the GPU if there is one."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise HamfastError("device: cuda was asked for, but torch sees no GPU; run `hamfast doctor`")
    try:
        torch.empty(1, device=name).fill_(0.0).item()
    except Exception as error:  # torch raises many types of errors
        reason = str(error).strip().splitlines()[0]
        raise HamfastError(f"device: expected cpu, cuda or auto, found {name!r} ({reason})") from error
    return name
