"""How work tells how far it is."""

from collections import Counter
from collections.abc import Callable

Progress = Callable[[int, int, Counter[str]], None]
"""Called with what is done, what there is to do, and counts by status (`ok` counts faces)."""


def unwatched(_done: int, _total: int, _counts: Counter[str]) -> None:
    """Show nothing."""
