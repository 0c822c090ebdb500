"""Which model answers: TorchServe is started again where it ends, and another takes its place where that is current.

The new one is loaded, warmed and held to the pictures that its file carries before it answers; the old one answers what
it has begun. Where the new one fails, the old one stays.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from agewatch.errors import AgewatchError, ImageError, ServeError
from agewatch.estimator.engine import resolve_precision
from agewatch.release import smoke, store
from agewatch.serving.ages import Ages, answer
from agewatch.serving.looking import Lookers
from agewatch.serving.metrics import RESTARTS
from agewatch.serving.refusal import Refusal, unavailable
from agewatch.serving.torchserve import How, TorchServe
from agewatch.settings import without_paths

LOOK_SECONDS = 2.0
"""So often it is looked whether TorchServe lives, and which model is current."""
QUIET_SECONDS = 10.0
"""After so long without an answer one is asked for; a server is ready that answered within three times as long."""
STUCK_SECONDS = 120.0
"""A TorchServe that runs and answers nothing for so long is started again."""
HAND_OVER_SECONDS = 1.0
"""So long new requests wait for those that the old model has begun, so that no answer of it follows one of the new."""
DRAIN_SECONDS = 20.0
_POLL_SECONDS = 0.05
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 1.0, 60.0

Tell = Callable[[dict[str, Any]], None]


class Backends:
    """The TorchServe that answers. `source` says which file is to be served, and where it is looked for anew."""

    def __init__(
        self, source: "Source", how: How, scratch: Path, logs: Path, lookers: Lookers, tell: Tell, is_proven: bool
    ) -> None:
        self._is_proven = is_proven
        self._source, self._how, self._scratch, self._logs = source, how, scratch, logs
        self._lookers, self._tell = lookers, tell
        self._current: Ages | None = None
        self._users: dict[Ages, int] = {}
        self._may_begin = asyncio.Event()
        self._may_begin.set()
        self._starts = 0
        self.problem: str | None = None
        """Why the current model of the store does not answer, for a person and without a path."""

    @property
    def model(self) -> str | None:
        """The id of the model that answers."""
        return None if self._current is None else self._current.backend.model.id

    @property
    def is_ready(self) -> bool:
        """Whether a prediction was answered lately."""
        return self._current is not None and time.monotonic() - self._current.answered_at < 3 * QUIET_SECONDS

    @asynccontextmanager
    async def using(self, pinned: str | None = None) -> AsyncIterator[Ages]:
        """The one that answers now, until the end. Raises Refusal where none does, or another model than `pinned`."""
        await self._may_begin.wait()
        ages = self.now(pinned)
        self._users[ages] = self._users.get(ages, 0) + 1
        try:
            yield ages
        finally:
            self._users[ages] -= 1
            if not self._users[ages]:
                del self._users[ages]

    def now(self, pinned: str | None = None) -> Ages:
        """The one that answers now. Raises Refusal."""
        if self._current is None:
            raise unavailable("The model's server is started again.", 5)
        if pinned is not None and pinned != self.model:
            raise Refusal(409, "other_model", f"The model that answers is {self.model}, not {pinned}.")
        return self._current

    async def start(self) -> None:
        """Start the first. Raises AgewatchError."""
        self._source.changed()
        self._current = await self._started(self._source.file())

    async def keep(self) -> None:
        """Look after it, for ever."""
        wait = _FIRST_WAIT_SECONDS
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                if self._current is None or not self._current.backend.is_alive or await self._is_stuck():
                    await self._start_again()
                elif self._source.changed():
                    await self._change()
                wait = _FIRST_WAIT_SECONDS
            except Exception as error:  # whatever it is: nobody else would start TorchServe again
                why = str(error) if isinstance(error, AgewatchError) else repr(error)
                self._tell({"event": "failed", "why": why})
                await asyncio.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT_SECONDS)

    async def stop(self) -> None:
        """End it."""
        if self._current is not None:
            await self._current.backend.stop()

    async def _started(self, mar: Path) -> Ages:
        """A TorchServe with a model, which answered as its file says. Raises ServeError, ModelError."""
        self._starts += 1
        backend = TorchServe(mar, self._how, self._scratch / str(self._starts), self._logs, self._source.store)
        try:
            await backend.start()
            ages = Ages(backend, self._how.workers)
            await self._prove(ages)
        except BaseException:
            await backend.stop()
            raise
        return ages

    async def _prove(self, ages: Ages) -> None:
        mar, loop = ages.backend.mar, asyncio.get_running_loop()

        def ask(picture: bytes) -> tuple[int, Mapping[str, Any]]:
            asked = asyncio.run_coroutine_threadsafe(answer(self._lookers, ages, picture, "detect"), loop)
            try:
                return 200, asked.result()
            except (ImageError, Refusal) as error:
                return 500, {"error": str(error)}

        precision = resolve_precision(ages.backend.model, self._how.precision)
        if self._is_proven and smoke.is_in(mar):
            found = await asyncio.to_thread(smoke.check, mar, ask, precision)
            if not found.passed:
                raise ServeError(f"{mar.name} does not answer as it should: {found.reason}")

    async def _start_again(self) -> None:
        """TorchServe ended, or hangs: until another one answers, nobody does."""
        gone, self._current = self._current, None
        if gone is not None:
            self._tell({"event": "ended", "model": gone.backend.model.id})
            await gone.backend.stop()
        RESTARTS.inc()
        self._source.changed()
        self._current = await self._started(self._source.file())
        self.problem = None
        self._tell({"event": "started", "model": self.model})

    async def _change(self) -> None:
        """Another model is current: let it answer in the place of the old one, which stays where it fails."""
        try:
            mar = self._source.file()
            old, new = self._current, await self._started(mar)
        except (AgewatchError, OSError) as error:
            self.problem = without_paths(f"{error} {self.model} goes on answering.")
            self._tell({"event": "not changed", "why": str(error)})
            return
        self._current, self.problem = new, None
        self._tell({"event": "changed", "model": self.model, "before": old and old.backend.model.id})
        if old is not None:
            self._may_begin.clear()
            try:
                await self._left(old, HAND_OVER_SECONDS)
            finally:
                self._may_begin.set()
            await self._left(old, DRAIN_SECONDS)
            await old.backend.stop()

    async def _left(self, old: Ages, seconds: float) -> None:
        """Wait until nobody uses it any more, at most so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while old in self._users:
                    await asyncio.sleep(_POLL_SECONDS)

    async def _is_stuck(self) -> bool:
        """Whether nothing was answered for long, although it was asked for."""
        ages = self._current
        assert ages is not None
        if time.monotonic() - ages.answered_at > QUIET_SECONDS:
            chip = bytes(ages.backend.model.spec.cut.size**2 * 3)
            with suppress(Refusal):
                await ages.of(chip, ["crop"])
        return time.monotonic() - ages.answered_at > STUCK_SECONDS


class Source:
    """Which file is served: one that was named, or the current one of a store, whatever that is by and by."""

    def __init__(self, named: Path | None, model_store: Path) -> None:
        self._named, self.store = named, model_store
        self._seen: object = None

    def file(self) -> Path:
        """The file. Raises AgewatchError where it is missing or is not the one that was promoted."""
        return store.resolve(self._named, self.store)

    def changed(self) -> bool:
        """Whether another model was made current since this was asked before."""
        before, self._seen = self._seen, None
        if self._named is None:
            with suppress(OSError):
                told = (self.store / store.POINTER_FILE).stat()
                self._seen = told.st_mtime_ns, told.st_ino
        return self._seen != before
