"""The parts that `up` keeps running: each a process that is started again with growing back-off when it ends.

Supervisors that were looked at: supervisor gives a part up after some tries, honcho starts nothing again, and neither
waits for one part before it starts the next; systemd does all of it and is not everywhere. So it is these lines.
"""

import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from agewatch.processes import end_with_parent, stop_group

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 60.0
WELL_SECONDS = 600.0
"""A part that ran so long has its next start at once."""
STOP_SECONDS = 30.0
MOST_LOG_BYTES = 20 * 2**20
"""A log that is larger is kept once, as NAME.log.1, when its part is started."""


@dataclass
class Part:
    """A process to keep running. `before` is called before each start; what it raises OSError or the like for is tried
    again later, as if the process had ended."""

    name: str
    command: list[str]
    env: dict[str, str]
    log: Path
    before: Callable[[], None] = lambda: None
    process: "subprocess.Popen[bytes] | None" = None
    _failures: int = 0
    _started: float = 0.0
    _next_start: float = field(default=0.0)

    def start(self) -> None:
        """Start it now. Raises OSError, and what `before` raises."""
        self.before()
        self._started = monotonic()
        self.log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self.log.exists() and self.log.stat().st_size > MOST_LOG_BYTES:
            self.log.replace(self.log.with_name(f"{self.log.name}.1"))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env={**os.environ, **self.env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_prepare,
            )

    def look(self, tell: Callable[[str], None]) -> None:
        """Start it again where it has ended and its time has come; to be called every second or so."""
        if self.process is not None:
            code = self.process.poll()
            if code is None:
                return
            self._put_off(f"ended ({_as_word(code)})", tell)
        if monotonic() < self._next_start:
            return
        try:
            self.start()
        except Exception as error:  # the next try may find the disk, the server or the port in order again
            self._put_off(f"can't be started: {error}", tell)

    def stop(self) -> None:
        """End it, by force after STOP_SECONDS."""
        if self.process is not None and self.process.poll() is None:
            stop_group(self.process, STOP_SECONDS)

    def _put_off(self, why: str, tell: Callable[[str], None]) -> None:
        now = monotonic()
        self._failures = 0 if self.process is not None and now - self._started > WELL_SECONDS else self._failures
        wait = min(FIRST_WAIT_SECONDS * 2**self._failures, LONGEST_WAIT_SECONDS)
        self.process, self._failures, self._next_start = None, self._failures + 1, now + wait
        tell(f"{self.name} {why}; it is started again in {wait:.0f} s. Its log is {self.log}.")


def _prepare() -> None:
    """In the new process: hear SIGINT, which a shell lets those ignore that stand behind `&`; end with `up`."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    end_with_parent(signal.SIGTERM)


def _as_word(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
