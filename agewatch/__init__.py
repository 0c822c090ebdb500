"""agewatch: ages for every face in an archive of pictures, and a drift verdict that can be believed.

From Python, `agewatch.score_archive(...)` and its siblings equal the commands: see `agewatch.api`. They are imported
when they are asked for.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_API = ("score_archive", "export", "train", "package", "evaluate", "compare", "promote", "rollback", "serve")


def __getattr__(name: str) -> Any:
    if name not in _API:
        raise AttributeError(f"module 'agewatch' has no attribute {name!r}")
    return getattr(import_module("agewatch.api"), name)


def __dir__() -> list[str]:
    return [*globals(), *_API]
