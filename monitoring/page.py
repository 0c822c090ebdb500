"""What every page of ours shares: how it is made and kept, and the words and version of `drift.json`.

Light to import, as `agewatch up` writes the page of all reports.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from agewatch.errors import UsageError
from agewatch.files import replacing

SCHEMA = 2
"""Of drift.json; raised whenever a key changes its meaning or goes."""
WORDS = {"drift": "Drift", "no_drift": "No drift", "too_little_data": "Too little data"}
"""Verdicts for a person."""

_MARK = b'<meta name="generator" content="agewatch">'

_templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)


def rendered(template: str, **context: Any) -> str:
    """A page from its template; the style is the same for all."""
    style = Markup(Path(__file__).with_name("report.css").read_text(encoding="utf-8"))  # noqa: S704  our own file
    return _templates.get_template(template).render(style=style, **context)


def script(name: str) -> dict[str, str]:
    """A script of ours for a template, with the hash by which the page's security policy lets it run, and no other."""
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return {"script": Markup(text), "script_hash": digest}  # noqa: S704  our own file


def taken(out: Path) -> Path:
    """Take a folder that a person named for a page. Raises UsageError where it is none or holds another's page."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is no folder.")
    page = out / "index.html"
    if page.exists() and _MARK not in page.read_bytes()[:2000]:
        raise UsageError(f"{page} is no page of agewatch's: name an empty or a new folder.")
    out.mkdir(parents=True, exist_ok=True, mode=0o700)
    return out


def write_page(file: Path, text: str) -> None:
    """Replace a page that may hold faces: only its user may read it. Raises OSError."""
    with replacing(file) as aside:
        aside.touch(0o600)
        aside.write_text(text, encoding="utf-8")
