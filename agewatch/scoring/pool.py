"""Worker processes that may crash or hang: a file that does it to its worker costs only itself.

Each worker is an executor of one process, so that one that dies takes no other's work along. It decodes and infers by
turns, on one thread: with one worker a core no core waits for another, so a second thread to overlap the two would only
compete for the same cores (benchmarks/bench.py prints how busy they are).
"""

import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from ctypes import c_double
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from multiprocessing import get_context, parent_process
from time import monotonic

from agewatch.errors import AgewatchError, ImageError
from agewatch.estimator.model import AgeModel
from agewatch.processes import end_with_parent, uninterrupted
from agewatch.scoring.archive import FileRef
from agewatch.scoring.scorer import Job, Scored, Scorer

FILE_SECONDS = 60.0
"""A file that takes longer hangs its reader or decoder: the worker is killed."""
_LONE_TRIES = 2  # a worker may also be killed by somebody else
_POLL_SECONDS = 1.0

Shard = Sequence[FileRef]


@dataclass
class _Task:
    worker: "_Worker"
    files: Shard
    tries: int
    hung: bool = False


class _Worker:
    """One spawned process with the model open."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._start()

    def _start(self) -> None:
        context = get_context("spawn")
        self._file_started = context.RawValue("d")  # by the monotonic clock, which all processes share
        self._executor = ProcessPoolExecutor(1, context, _share, (self._file_started,))
        with uninterrupted():
            self._opened = self._executor.submit(_open, self._job)

    def submit(self, files: Shard) -> Future[Scored]:
        """Start on a shard, in a new process where this one died meanwhile. Raises what `pid` raises."""
        try:
            return self._submit(files)
        except BrokenProcessPool:
            self.restart()
            return self._submit(files)

    def _submit(self, files: Shard) -> Future[Scored]:
        self.pid()
        self._file_started.value = monotonic()
        return self._executor.submit(_work, files)

    def hangs(self) -> bool:
        """Tell whether the file that is worked on has taken too long."""
        started: float = self._file_started.value
        return monotonic() - started > FILE_SECONDS

    def restart(self) -> None:
        """Replace a process that died."""
        self.stop()
        self._start()

    def pid(self) -> int:
        """Wait until the model is open; return the process's number. A process that is killed meanwhile is replaced.

        Raises ModelError where the model can't be opened, AgewatchError where no process lives so long.
        """
        with suppress(BrokenProcessPool):
            return self._opened.result()
        self.restart()
        try:
            return self._opened.result()
        except BrokenProcessPool as error:
            raise AgewatchError("A worker process can't start: it ended at once.") from error

    def kill(self) -> None:
        """End the process at once."""
        with suppress(ProcessLookupError):
            os.kill(self.pid(), signal.SIGKILL)

    def stop(self) -> None:
        """Let the process end."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def score_shards(job: Job, shards: Iterable[Shard], workers: int) -> Iterator[Scored]:
    """Score shards in worker processes and yield the answers as they come.

    On Ctrl-C the shards under way are finished and yielded before KeyboardInterrupt is raised. Raises ModelError where
    the model can't be opened, AgewatchError where no worker process can start.
    """
    idle = [_Worker(job)]
    under_way: dict[Future[Scored], _Task] = {}
    again: deque[tuple[FileRef, int]] = deque()
    to_do = iter(shards)
    try:
        idle[0].pid()  # before the others: it converts the network for all, and fails early
        idle += [_Worker(job) for _ in range(workers - 1)]
        while True:
            _hand_out(idle, under_way, again, to_do)
            if not under_way:
                return
            yield from _collect(job, idle, under_way, again)
    except KeyboardInterrupt:
        while under_way:
            yield from _collect(job, idle, under_way, again)
        raise
    finally:
        for task in under_way.values():
            task.worker.kill()
        for worker in [*idle, *(task.worker for task in under_way.values())]:
            worker.stop()


def _hand_out(
    idle: list[_Worker],
    under_way: dict[Future[Scored], _Task],
    again: deque[tuple[FileRef, int]],
    to_do: Iterator[Shard],
) -> None:
    """Give every idle worker a task: first the files that are tried on their own, then the next shards."""
    while idle:
        if again:
            file, tries = again.popleft()
            files: Shard | None = [file]
        else:
            files, tries = next(to_do, None), 0
        if files is None:
            return
        worker = idle.pop()
        under_way[worker.submit(files)] = _Task(worker, files, tries + 1)


def _collect(
    job: Job, idle: list[_Worker], under_way: dict[Future[Scored], _Task], again: deque[tuple[FileRef, int]]
) -> Iterator[Scored]:
    """Yield the answers that are there; where a worker died, or was killed because it hung, note its files."""
    done, _ = wait(under_way, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
    for future in done:
        task = under_way.pop(future)
        try:
            scored = future.result()
        except BrokenProcessPool:
            task.worker.restart()
            idle.append(task.worker)
            if len(task.files) > 1:
                again.extend((file, 0) for file in task.files)
            elif task.tries < _LONE_TRIES and not task.hung:
                again.append((task.files[0], task.tries))
            else:
                yield Scored(1, [_given_up(job, task.files[0], task.hung)], [])
        else:
            idle.append(task.worker)
            yield scored
    for task in under_way.values():
        if task.worker.hangs() and not task.hung:
            task.hung = True
            task.worker.kill()


def _given_up(job: Job, file: FileRef, hung: bool) -> dict[str, object]:
    did = f"took more than {FILE_SECONDS:.0f} seconds" if hung else "crashed"
    digest = None
    with suppress(ImageError):  # with its hash it counts as scored, so that it is not tried every night
        digest = blake2b(file.read(job.root)[0], digest_size=32).hexdigest()
    return {
        "archive": job.archive, "path": file.path, "bytes": file.bytes, "mtime_ns": file.mtime_ns,
        "content_hash": digest, "status": "decoder_failed", "error": f"The process that read the picture {did}.",
        "model": AgeModel.load(job.model_path).id, "mode": job.mode, "engine": "none", "run_id": job.run_id,
        "scored_at": datetime.now(UTC),
    }  # fmt: skip


_scorer: Scorer | None = None  # of this worker process
_file_started: c_double


def _open(job: Job) -> int:
    global _scorer
    end_with_parent(signal.SIGKILL)
    parent = parent_process()
    if parent is not None and os.getppid() != parent.pid:
        os._exit(1)  # it was killed before the line above, and no signal will come
    _scorer = Scorer(job)
    # libtiff and others write a line for every damaged file; the rows say it better.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    return os.getpid()


def _work(files: Shard) -> Scored:
    assert _scorer is not None
    return _scorer.score(files, _note_start)


def _share(file_started: c_double) -> None:
    global _file_started
    _file_started = file_started


def _note_start() -> None:
    _file_started.value = monotonic()
