"""Options that several commands share, and how a command answers."""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from agewatch.errors import REFUSAL_CODES, UsageError


def utf8(name: str | None) -> str | None:
    """A name as UTF-8, in which the table holds it, whatever the terminal's encoding."""
    return name and os.fsencode(name).decode(errors="backslashreplace")


ArchiveOption = Annotated[
    str | None, typer.Option("--archive", help="Name of the archive in the table.", callback=utf8)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
LabelledArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="DATA...", help="Labelled pictures: age folders, UTKFace names, CSV or Parquet, labels:ARCHIVE."
    ),
]
ModelOption = Annotated[Path | None, typer.Option("--model", help="Model file; default: the store's current one.")]
PrecisionOption = Annotated[Literal["auto", "f32", "bf16"], typer.Option(help="Number format of the network.")]
TableOption = Annotated[
    Path | None, typer.Option("--predictions", help="Folder or s3:// URL of the predictions table.")
]
TrustOption = Annotated[
    bool, typer.Option("--trust-code", help="Let the model's code run though it was not packaged here.")
]
WorkersOption = Annotated[int | None, typer.Option(min=1, help="Worker processes; default: one a core.")]


def trusted(file: Path, trust_code: bool) -> Path:
    """A model file, whose code a person may have said to trust; then what differs in it is said."""
    if trust_code:
        from agewatch import api

        typer.echo(api.trust_code(file), err=True)
    return file


def wants_json(arguments: Sequence[str]) -> bool:
    """Tell whether the answer is to be JSON, also where the other words can't be parsed; `--` ends the options."""
    return "--json" in takewhile(lambda word: word != "--", arguments)


def statuses_of(told: Sequence[str] | None) -> list[str]:
    """The statuses that a person named; `refused` means all refusals. Raises UsageError where there is no such."""
    known = ("ok", "no_face", *REFUSAL_CODES)
    if unknown := set(told or ()) - {*known, "refused"}:
        raise UsageError(f"There is no status {', '.join(sorted(unknown))}; there are {', '.join(known)} and refused.")
    return [code for name in told or () for code in (REFUSAL_CODES if name == "refused" else [name])]


def answer(as_json: bool, content: Any, show: Callable[..., None], *what: Any) -> None:
    """Print the content, a dictionary or dataclass, as one JSON object, or show a person what there is."""
    if as_json:
        typer.echo(json.dumps(content, ensure_ascii=False, default=dataclasses.asdict))
    else:
        show(*what)
