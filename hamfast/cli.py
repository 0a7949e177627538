"""The command line: ``hamfast``."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
import warnings

import typer
from rich.markup import escape
from rich.table import Table

from hamfast.commands.data import data_app
from hamfast.commands.model import model_app
from hamfast.commands.output import console, tell
from hamfast.commands.results import bands, evaluate, export, predict
from hamfast.commands.training import config, import_checkpoint, train
from hamfast.errors import DataWarning, HamfastError
from hamfast.version import __version__

app = typer.Typer(
    help="Learn DFT Hamiltonians of crystals: read, train, predict, evaluate, plot bands.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
for command in (config, train, predict, evaluate, bands, export):
    app.command()(command)
app.command("import-checkpoint")(import_checkpoint)
app.add_typer(data_app, name="data")
app.add_typer(model_app, name="model")


@app.callback()
def _common(context: typer.Context) -> None:
    """Shows each warning about data as one line on stderr."""
    shown = warnings.catch_warnings()
    shown.__enter__()
    warnings.simplefilter("default", DataWarning)
    usual = warnings.showwarning

    def show(message, category, *rest, **options):
        if issubclass(category, DataWarning):
            tell("warning:", "yellow", str(message))
        else:
            usual(message, category, *rest, **options)

    warnings.showwarning = show
    context.call_on_close(lambda: shown.__exit__(None, None, None))


@app.command()
def doctor() -> None:
    """Print what is installed, which backends are usable and why the others are not."""
    from hamfast import doctor as module

    for title, findings in (("packages", module.versions()), ("backends", module.backends())):
        table = Table(title=f"hamfast {__version__}: {title}", show_header=False, title_justify="left")
        for finding in findings:
            table.add_row("[green]ok[/]" if finding.ok else "[yellow]no[/]", finding.name, escape(finding.text))
        console.print(table)


def _fail(text: str) -> int:
    tell("error:", "red", text)
    return 1


def _log_of(error: BaseException) -> str:
    """Writes the traceback to a file; where it is, in words."""
    text = f"hamfast {__version__}, Python {sys.version}\n{sys.argv}\n\n" + "".join(traceback.format_exception(error))
    try:
        handle, name = tempfile.mkstemp(prefix="hamfast-error-", suffix=".log")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:
        return "no log could be written"
    return f"the full story is in {name}"


def run(command) -> int:
    """Runs a command; returns the exit status.

    An error of the user is one sentence on stderr. So is an error of hamfast, with the name of a
    file that holds the traceback.
    """
    try:
        command()
    except HamfastError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `hamfast ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError as error:
        return _fail(
            f"the memory of this machine does not suffice ({str(error) or 'an allocation failed'}); {_log_of(error)}"
        )
    except OSError as error:
        path = f"{error.filename}: " if error.filename else ""
        return _fail(f"{path}{error.strerror or error}; {_log_of(error)}")
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        return _fail(
            f"unexpected {type(error).__name__}: {reason}; this is a fault of hamfast, please report it; {_log_of(error)}"
        )
    return 0


def main(arguments: list[str] | None = None) -> None:
    """The entry point.

    Args:
        arguments: in place of those of the command line.
    """
    for stream in (sys.stdout, sys.stderr):  # names that the terminal's encoding does not have are no reason to fail
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    status = run(lambda: app(arguments))
    if status:
        raise SystemExit(status)


if __name__ == "__main__":
    main()
