"""Where things lie, and how much memory: argument, then AGEWATCH_* environment, then default.

Nothing is written at import.
"""

import os
import re
from contextlib import suppress
from pathlib import Path

from pydantic import SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from agewatch.errors import UsageError

_BEGIN, _END = re.compile(r"(?<![^\s'\"`(])/\S"), re.compile(r"(?=[\s'\"`),:;.])|$")
_PATH = re.compile(r"[^\s'\"`(]*/[^\s'\"`),:;]*[^\s'\"`),:;.]")


class Settings(BaseSettings):
    """Settings of agewatch. `AGEWATCH_HOME` holds everything it writes; `AGEWATCH_MODEL_STORE` the model files.

    `AGEWATCH_MEMORY_GB`, in units of 10^9 bytes, is what all workers of a run may take together, or all of a server's.
    `AGEWATCH_TOKEN` is that of a server that is asked (`agewatch.remote`).
    """

    model_config = SettingsConfigDict(env_prefix="AGEWATCH_", env_ignore_empty=True)

    home: Path = Path(".agewatch")
    model_store: Path = Path("model_store")
    memory_gb: float = 6.0
    token: SecretStr | None = None

    @field_validator("home", "model_store")
    @classmethod
    def _expand(cls, folder: Path) -> Path:
        """`~` is the user's home, which no shell has expanded in a service's environment."""
        return folder.expanduser()

    @field_validator("memory_gb", mode="before")
    @classmethod
    def _gigabytes(cls, told: object) -> float:
        """A number of at least 1; said as wrong usage, not as an error of ours."""
        with suppress(ValueError):
            if (gigabytes := float(str(told))) >= 1:
                return gigabytes
        raise UsageError(f"AGEWATCH_MEMORY_GB is a number of gigabytes, at least 1, not {told!r}.")

    @property
    def predictions(self) -> Path:
        """The default predictions table."""
        return self.home / "predictions"

    @property
    def reports(self) -> Path:
        """Drift reports, one folder an archive and run."""
        return self.home / "reports"

    @property
    def evidently(self) -> Path:
        """Evidently's workspace, one project an archive."""
        return self.home / "evidently"

    @property
    def cache(self) -> Path:
        """Converted networks; safe to delete."""
        return self.home / "cache"


def without_paths(sentence: str, *known: Path) -> str:
    """A sentence as it may leave the machine: in the place of each path an ellipsis.

    A path may hold spaces where something lies there, or below one of the `known` folders.
    """
    for found in reversed([*_BEGIN.finditer(sentence)]):
        ends = [end.start() for end in _END.finditer(sentence, found.end())]
        there = (end for end in reversed(ends) if os.path.lexists(sentence[found.start() : end]))
        if (end := next(there, None)) is not None:
            sentence = f"{sentence[: found.start()]}…{sentence[end:]}"
    for folder in (*known, Settings().home, Settings().model_store, Path()):
        sentence = sentence.replace(str(folder.resolve()), "…")
    return _PATH.sub("…", sentence)
