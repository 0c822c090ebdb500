"""What a request asks: a picture, however it was sent, and how its faces are to be taken."""

import base64
import binascii
import json
from collections.abc import Iterable
from typing import Any, cast, get_args

from multipart import MultipartError, PushMultipartParser, parse_options_header
from starlette.requests import Request

from agewatch.estimator.spec import Mode
from agewatch.serving.refusal import usage

FIELDS = ("file", "data", "image")
"""Of a form or of JSON, in which a picture may come."""
_MOST_FIELDS = 16


def modes_told(request: Request) -> list[str]:
    """How the header `Faces` and the query say that faces are taken. Raises Refusal for a query of anything else."""
    known = ("faces", "face") if request.url.path.startswith("/explanations/") else ("faces",)
    for name in request.query_params:
        if name not in known:
            raise usage(f"The query {name!r} is not known; faces is, with detect or crop.")
    return [*request.query_params.getlist("faces"), *request.headers.getlist("faces")]


def face_told(request: Request) -> int:
    """Which face the query `face` asks about, by its number; 0, the largest, where it says nothing. Raises Refusal."""
    told = request.query_params.get("face", "0")
    if not (told.isascii() and told.isdecimal() and len(told) < 5):
        raise usage(f"face is the number of a face, 0 for the largest, not {told!r}.")
    return int(told)


def one_mode(told: Iterable[str]) -> Mode:
    """The one mode that all say, detect where nobody does. Raises Refusal where they differ or say anything else."""
    found = set(told) or {"detect"}
    if len(found) > 1:
        raise usage(f"The request says that faces is {' and '.join(sorted(found))}: say one.")
    [mode] = found
    if mode not in get_args(Mode):
        raise usage(f"faces is detect or crop, not {mode!r}.")
    return cast(Mode, mode)


def picture_of(content_type: str, body: bytes) -> tuple[bytes, list[str]]:
    """The picture's bytes, and what a field `faces` beside them says: of a form, of JSON with base64, or the body.

    No other content type means anything: what a picture is, its bytes say. Raises Refusal for a form or JSON without.
    """
    kind, options = parse_options_header(content_type)
    if kind == "multipart/form-data":
        return _of_fields(_form(body, options.get("boundary", "")))
    if kind == "application/json" and body.lstrip()[:1] == b"{":
        return _of_fields(_json(body))
    return body, []


def _of_fields(fields: dict[str, list[bytes]]) -> tuple[bytes, list[str]]:
    pictures = [content for name in FIELDS for content in fields.get(name, [])]
    if len(pictures) != 1:
        found = "more than one picture" if pictures else "no picture"
        raise usage(f"The request carries {found}: send one, in the field `file`, or as the body itself.")
    return pictures[0], [mode.decode(errors="replace") for mode in fields.get("faces", [])]


def _form(body: bytes, boundary: str) -> dict[str, list[bytes]]:
    fields: dict[str, list[bytes]] = {}
    name, content = "", bytearray()
    try:
        with PushMultipartParser(boundary, len(body), max_segment_count=_MOST_FIELDS) as parser:
            for event in parser.parse(body):
                if isinstance(event, bytes | bytearray):
                    content += event
                elif event is not None:
                    name, content = event.name, bytearray()
                else:
                    fields.setdefault(name, []).append(bytes(content))
    except (MultipartError, ValueError) as error:
        raise usage(f"The form can't be read: {error}.") from error
    return fields


def _json(body: bytes) -> dict[str, list[bytes]]:
    try:
        told: dict[str, Any] = json.loads(body)
        texts = {name: text for name, text in told.items() if isinstance(text, str)}
        pictures = {name: [base64.b64decode(texts[name], validate=True)] for name in FIELDS if name in texts}
    except (ValueError, RecursionError, binascii.Error) as error:
        raise usage(f"The JSON can't be read: {error}.") from error
    return pictures | {name: [texts[name].encode()] for name in ("faces",) if name in texts}
