"""The door: `agewatch ...`. Rooms are imported inside commands, so that --help and errors are instant."""

import os
import re
import signal
import sys
from contextlib import suppress
from functools import partial
from io import TextIOWrapper
from typing import NoReturn

import typer

from agewatch import __version__
from agewatch.cli import (
    archives,
    gallery,
    labels,
    models,
    monitoring,
    scoring,
    serving,
    status,
    table,
    training,
    up,
    upkeep,
)
from agewatch.cli.options import answer, wants_json
from agewatch.errors import AgewatchError, UsageError
from agewatch.files import keep_private, keep_traceback
from agewatch.settings import Settings

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown",
    help="Estimate the age of every face in folders of pictures, and say when the estimates drift.",
)  # fmt: skip
for group in (scoring, gallery, training, serving, up, status, upkeep):
    app.add_typer(group.app)
app.add_typer(models.app, name="models")
app.add_typer(archives.app, name="archives")
app.add_typer(table.app, name="table")
app.add_typer(monitoring.app, name="drift")
app.add_typer(labels.app, name="labels")

INTERRUPTED = 130
_UNHEARD = 128 + signal.SIGPIPE  # what a shell says of a program whose reader went away


def main() -> NoReturn:
    """Run the command line: sentences and exit codes, never a traceback. SIGTERM ends a command as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    keep_private()
    as_json = wants_json(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # it is None where it was closed
            # JSON is UTF-8 (RFC 8259, section 8.1), whatever the terminal; text that a stream can't hold is escaped.
            stream.reconfigure(encoding="utf-8" if as_json else None, errors="backslashreplace")
    try:
        code = _run(as_json)
        print(end="", flush=True)
    except BrokenPipeError:
        code = _without_output(_UNHEARD)
    except OSError as error:  # of stdout or stderr: `_run` says all others
        with suppress(OSError):
            print(f"agewatch: The output can't be written: {error.strerror}.", file=sys.stderr, flush=True)
        code = _without_output(1)
    except SystemExit as end:
        if not isinstance(end.__context__, BrokenPipeError):  # rich's answer to a closed pipe
            raise
        code = _without_output(_UNHEARD)
    sys.exit(code)


def _run(as_json: bool) -> int:
    """Run one command and return its exit code. Raises OSError where stdout or stderr can't be written."""
    try:
        if any(re.fullmatch("(--[a-z-]+=)?", argument) for argument in sys.argv[1:]):
            raise UsageError("An argument is empty: leave it out, or say what is meant ('.' is the folder here).")
        code = app(standalone_mode=False)
        if code == INTERRUPTED:  # typer turns Ctrl-C into this code without a word
            _fail(as_json, "interrupted", "Interrupted. What was finished is kept.", INTERRUPTED)
    except AgewatchError as error:
        code = _fail(as_json, error.code, str(error), error.exit_code)
    except typer.TyperException as error:
        code = _fail(as_json, "usage", error.format_message(), error.exit_code)
    except BrokenPipeError:
        raise
    except OSError as error:  # a file that can't be read or written, wherever that is met
        what = f"{error.filename or 'A file, or the output, failed'}: {error.strerror or error}"
        code = _fail(as_json, "failed", f"{what}. {_kept()}", 1)
    except Exception as error:  # a bug of ours, or of a library: said in a sentence, kept in a file
        code = _fail(as_json, "unexpected", f"Something unexpected went wrong: {error!r}. {_kept()}", 1)
    return code or 0


def _without_output(code: int) -> int:
    """Drop what stdout and stderr still hold, which Python would write at its end and complain; return the code."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    return code


def _fail(as_json: bool, code: str, message: str, exit_code: int) -> int:
    told = f"agewatch: {message}" if message else ""  # a bare `agewatch` has shown its help
    content = {"error": {"code": code, "message": message}}
    answer(as_json, content, partial(typer.echo, err=True), told)
    return exit_code


def _kept() -> str:
    return keep_traceback(Settings().home, f"{__version__} {sys.argv[1:]}")
