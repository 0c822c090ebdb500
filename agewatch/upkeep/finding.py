"""What one of the doctor's checks says."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from agewatch.settings import Settings

State = Literal["ok", "warn", "wrong"]
"""`warn`: nights work, but somebody should look; `wrong`: they don't, or something is not kept private."""


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it stands, a sentence, and a command that mends it where there is one."""

    check: str
    state: State
    sentence: str
    mend: str | None = None


Check = Callable[[Settings], Iterable[Finding]]
"""Looks at one thing; what it raises becomes a finding too."""
