"""Scoring by a server: files are read, hashed and kept track of here, and looked at there.

The rows are those of `scorer`, but for the engine's name; what reads shards, commits and goes on is the same.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

from agewatch.errors import ImageError, ServeError, UsageError
from agewatch.estimator.model import AgeModel
from agewatch.estimator.spec import Mode
from agewatch.remote import AsyncClient, Client, Server
from agewatch.scoring.predictions import Key, Rows
from agewatch.scoring.scorer import Repeats, Scored, Scoring
from agewatch.sources.source import FileRef, Source

MOST_BYTES = 128 * 2**20
"""Of files that a process holds at once; a larger one goes alone."""
_FIRST_PATIENCE_SECONDS = 10.0
_TICK_SECONDS = 5.0


@dataclass(frozen=True)
class ServedJob(Scoring):
    """Scoring with the model of a server."""

    server: Server

    def open(self) -> Callable[[Sequence[FileRef], Callable[[], None]], Scored]:
        """Reach the server. Raises ServeError where it does not answer, or with another model."""
        return _Asker(self).score


def job(source: Source, name: str, mode: Mode, run_id: str, server: Server, model_path: Path | None) -> ServedJob:
    """Scoring with the model that a server has now.

    Raises ServeError where it does not answer, UsageError where a model is named and the server has another.
    """
    with Client(server, patience=_FIRST_PATIENCE_SECONDS) as client:
        model, _ = client.describe()
    if model_path is not None and (named := AgeModel.load(model_path).id) != model:
        raise UsageError(f"The server's model is {model}, not {named}.")
    return ServedJob(source, Key(name, model, mode), run_id, server)


class _Asker:
    """Turns files into rows; its connections last from shard to shard."""

    def __init__(self, job: ServedJob) -> None:
        self._job, self._done = job, Repeats()
        self._runner, self._client = asyncio.Runner(), AsyncClient(job.server)
        self._runner.run(self._client.__aenter__())
        model, engine = self._runner.run(self._client.describe())
        self._require_same(model)
        self._engine = f"torchserve-{engine}"

    def score(self, files: Sequence[FileRef], starts: Callable[[], None]) -> Scored:
        """Score a shard; see `Scorer.score`. Raises ServeError."""
        return self._runner.run(self._score(files, starts))

    async def _score(self, files: Sequence[FileRef], starts: Callable[[], None]) -> Scored:
        rows: Rows = []
        same: list[tuple[FileRef, str]] = []
        repeated: list[dict[str, Any]] = []
        under_way: dict[asyncio.Task[Rows], int] = {}

        async def reap() -> None:
            """Wait for an answer. Who waits does not hang: a reader that hangs keeps this from being called."""
            starts()
            done, _ = await asyncio.wait(under_way, timeout=_TICK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                del under_way[task]
                rows.extend(task.result())

        try:
            for file, read in self._job.source.reads(files):
                while under_way and self._is_full(under_way, file.bytes or 0):
                    await reap()
                starts()
                row = self._job.row(file, self._engine)
                try:
                    data, file = read()
                except ImageError as refusal:
                    rows.append(row | {"status": refusal.code, "error": str(refusal)})
                    continue
                digest = blake2b(data, digest_size=32).hexdigest()
                row |= asdict(file) | {"content_hash": digest}
                if digest in self._done:
                    repeated.append(row)
                elif self._job.is_known(digest):
                    same.append((file, digest))
                else:
                    self._done.expect(digest)
                    under_way[asyncio.create_task(self._rows(row, data))] = len(data)
                    await asyncio.sleep(0)  # lets it be sent
            while under_way:
                await reap()
        finally:
            for task in under_way:
                task.cancel()
        return Scored(len(files), rows + self._done.copies(rows, repeated), same)

    def _is_full(self, under_way: Mapping[Any, int], more: int) -> bool:
        return len(under_way) > int(self._client.window.size) or sum(under_way.values()) + more > MOST_BYTES

    async def _rows(self, row: dict[str, Any], data: bytes) -> Rows:
        """The rows of a file. Raises ServeError."""
        try:
            if not data:  # needs no server, and some refuse a request without a body
                raise ImageError("empty", "The file has no bytes.")
            answer = await self._client.ask(data, self._job.key.mode)
        except ImageError as refusal:
            return [row | {"status": refusal.code, "error": str(refusal)}]
        self._require_same(answer["model"])
        taken = answer["captured_at"]
        row |= {name: answer[name] for name in ("width", "height", "camera", "rendition")} | {"turn": 0}
        row |= {"captured_at": taken and datetime.fromisoformat(taken), "engine": f"torchserve-{answer['engine']}"}
        if not answer["faces"]:
            return [row | {"status": "no_face"}]
        return [row | {"status": "ok", "face": index} | _columns(face) for index, face in enumerate(answer["faces"])]

    def _require_same(self, model: str) -> None:
        if model != self._job.key.model:
            raise ServeError(
                f"The server's model was {self._job.key.model} and is {model} now. What the first one scored is kept:"
                " run again to score the archive with the second."
            )


def _columns(face: Mapping[str, Any]) -> dict[str, Any]:
    box = dict(zip(("box_x", "box_y", "box_w", "box_h"), face["box"], strict=True))
    names = ("age", "age_low", "age_high", "brightness", "contrast", "sharpness")
    return box | {"face_score": face["score"]} | {name: face[name] for name in names}
