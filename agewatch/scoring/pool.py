"""Worker processes that may crash or hang: an item that does it to its worker costs only itself.

Each worker is an executor of one process, so that one that dies takes no other's work along. It decodes and infers by
turns, on one thread: with one worker a core no core waits for another, so a second thread to overlap the two would only
compete for the same cores (benchmarks/bench.py prints how busy they are).
"""

import os
import signal
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from ctypes import Array, c_double
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from time import monotonic, process_time
from typing import Any, Generic, Protocol, TypeVar

import psutil

from agewatch.errors import AgewatchError
from agewatch.processes import end_with_parent, uninterrupted

ITEM_SECONDS = 60.0
"""An item that takes longer hangs its reader or decoder: the worker is killed. Where other jobs keep the cores from a
worker that is at work, its own time on them is counted, and MOST_SECONDS are the limit."""
MOST_SECONDS = 600.0
_AT_WORK = 0.1  # of the time on a core: one that waits for a disk has less
_LONE_TRIES = 2  # a worker may also be killed by somebody else
_POLL_SECONDS = 1.0

Item = TypeVar("Item")
Answer = TypeVar("Answer")

Work = Callable[[Sequence[Item], Callable[[], None]], Answer]
"""Answers a shard of items; its second argument is called before each, so that one that hangs is noticed."""


class Task(ABC, Generic[Item, Answer]):
    """What is done to shards of items, in a form that travels to worker processes as they start."""

    @abstractmethod
    def open(self) -> "Work[Item, Answer]":
        """Get ready, in a worker. Raises AgewatchError where no worker could."""

    @abstractmethod
    def give_up(self, item: Item, why: str) -> Answer:
        """Answer, in the process that hands out, for an item that broke its worker; `why` ends a sentence about it."""


def shards(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Cut a list of items into shards of at most `size`, in order."""
    return (items[start : start + size] for start in range(0, len(items), size))


class Run(Protocol):
    """Works on shards and yields the answers as they come, in any order: `run`, or another machine's."""

    def __call__(self, task: Task[Item, Answer], shards: Iterable[Sequence[Item]], workers: int, /) -> Iterator[Answer]:
        """Raises what the task's `open` raises, and AgewatchError where nobody can work."""
        ...


class Worker(Protocol):
    """What a pool asks of one that works for it: the seam at which workers elsewhere enter (see `on_ray`)."""

    def submit(self, items: Sequence[Any]) -> Future[Any]:
        """Start on a shard; the future raises BrokenProcessPool where the worker died over it."""
        ...

    def hangs(self) -> bool:
        """Tell whether the item that is worked on has taken too long."""
        ...

    def restart(self) -> bool:
        """Replace one that died. False where there is no place for it any more, through no fault of its items."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...

    def stop(self) -> None:
        """Let it end."""
        ...


def run(task: Task[Item, Answer], shards: Iterable[Sequence[Item]], workers: int) -> Iterator[Answer]:
    """Work on shards in so many processes of this machine and yield the answers as they come.

    On Ctrl-C the shards under way are finished and yielded before KeyboardInterrupt is raised. Raises what the task's
    `open` raises, and AgewatchError where no worker process can start.
    """

    def start() -> Iterator[Worker]:
        first = _Process(task)
        yield first
        first.pid()  # before the others: it converts the network for all, and fails early
        for _ in range(workers - 1):
            yield _Process(task)

    return answers(task, shards, start())


def answers(task: Task[Item, Answer], shards: Iterable[Sequence[Item]], workers: Iterable[Worker]) -> Iterator[Answer]:
    """Have shards worked on and yield the answers as they come, as `run` does; then stop the workers.

    Raises AgewatchError where no worker is left.
    """
    pool = _Pool(task, shards)
    try:
        for worker in workers:
            pool.add(worker)
        while pool.hand_out():
            yield from pool.collect()
    except KeyboardInterrupt:
        while pool.is_busy():
            yield from pool.collect()
        raise
    finally:
        pool.close()


class _Pool(Generic[Item, Answer]):
    """The workers, what each is at, and what is still to do."""

    def __init__(self, task: Task[Item, Answer], shards: Iterable[Sequence[Item]]) -> None:
        self._task = task
        self._to_do = iter(shards)
        # Of shards that broke: their items one by one, or whole, and how often each was tried.
        self._again: deque[tuple[Sequence[Item], int]] = deque()
        self._idle: list[Worker] = []
        self._under_way: dict[Future[Any], _Assignment] = {}

    def add(self, worker: Worker) -> None:
        """Take on another worker."""
        self._idle.append(worker)

    def is_busy(self) -> bool:
        """Tell whether an answer is awaited."""
        return bool(self._under_way)

    def hand_out(self) -> bool:
        """Give every idle worker something: first what broke, then new shards. False: all is done."""
        while (self._idle or not self._under_way) and (found := self._next()) is not None:
            if not self._idle:
                raise AgewatchError("No worker is left: all their machines are gone. What was done before is kept.")
            items, tries = found
            worker = self._idle.pop()
            self._under_way[worker.submit(items)] = _Assignment(worker, items, tries + 1)
        return self.is_busy()

    def collect(self) -> Iterator[Answer]:
        """Yield the answers that are there; note the items of workers that died, kill those that hang."""
        done, _ = wait(self._under_way, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
        for future in done:
            given = self._under_way.pop(future)
            try:
                answer = future.result()
            except BrokenProcessPool:
                if given.worker.restart():
                    self._idle.append(given.worker)
                    yield from self._after_a_break(given)
                else:
                    self._again.append((given.items, given.tries - 1))
            else:
                self._idle.append(given.worker)
                yield answer
        for given in self._under_way.values():
            if given.worker.hangs() and not given.hung:
                given.hung = True
                given.worker.kill()

    def close(self) -> None:
        """End all workers."""
        for given in self._under_way.values():
            given.worker.kill()
        for worker in [*self._idle, *(given.worker for given in self._under_way.values())]:
            worker.stop()

    def _next(self) -> tuple[Sequence[Item], int] | None:
        if self._again:
            return self._again.popleft()
        items = next(self._to_do, None)
        return None if items is None else (items, 0)

    def _after_a_break(self, given: "_Assignment") -> Iterator[Answer]:
        """Try the items of a shard one by one, and one that was alone once more; then give it up."""
        if len(given.items) > 1:
            self._again.extend(([item], 0) for item in given.items)
        elif given.tries < _LONE_TRIES and not given.hung:
            self._again.append((given.items, given.tries))
        else:
            long = f"took more than {ITEM_SECONDS:.0f} seconds"
            yield self._task.give_up(given.items[0], long if given.hung else "crashed")


@dataclass
class _Assignment:
    worker: Worker
    items: Sequence[Any]
    tries: int
    hung: bool = False


class _Process:
    """One spawned process of this machine with the task open."""

    def __init__(self, task: Task[Any, Any]) -> None:
        self._task = task
        self._start()

    def _start(self) -> None:
        context = get_context("spawn")
        # By the monotonic clock, which all processes share, and the worker's own time on a core.
        self._item_started = context.RawArray("d", 2)
        self._executor = ProcessPoolExecutor(1, context, _receive, (self._task, self._item_started))
        with uninterrupted():
            self._opened = self._executor.submit(_open)

    def submit(self, items: Sequence[Any]) -> Future[Any]:
        """Start on a shard, in a new process where this one died meanwhile. Raises what `pid` raises."""
        try:
            return self._submit(items)
        except BrokenProcessPool:
            self.restart()
            return self._submit(items)

    def _submit(self, items: Sequence[Any]) -> Future[Any]:
        self._item_started[:] = [monotonic(), core_seconds(self.pid()) or 0.0]
        return self._executor.submit(_work_on, items)

    def hangs(self) -> bool:
        """Tell whether the item that is worked on has taken too long."""
        started, before = self._item_started
        passed = monotonic() - started
        if passed <= ITEM_SECONDS:
            return False
        used = core_seconds(self.pid())
        return used is None or takes_too_long(passed, used - before)

    def restart(self) -> bool:
        """Replace a process that died."""
        self.stop()
        self._start()
        return True

    def pid(self) -> int:
        """Wait until the task is open; return the process's number. A process that is killed meanwhile is replaced.

        Raises what the task's `open` raises, AgewatchError where no process lives so long.
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


def takes_too_long(passed: float, own: float) -> bool:
    """Tell whether an item hangs that was begun so many seconds ago, of which its worker had some on a core."""
    return passed > ITEM_SECONDS and (not _AT_WORK * passed < own < ITEM_SECONDS or passed > MOST_SECONDS)


_task: Task[Any, Any]  # these three are of a worker process
_item_started: Array[c_double]
_work: Work[Any, Any]


def core_seconds(pid: int) -> float | None:
    """What a process had of the cores so far; None where it is dead."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return None
    return float(times.user + times.system)


def _receive(task: Task[Any, Any], item_started: Array[c_double]) -> None:
    global _task, _item_started
    _task, _item_started = task, item_started


def _open() -> int:
    global _work
    end_with_parent(signal.SIGKILL)
    parent = parent_process()
    if parent is not None and os.getppid() != parent.pid:
        os._exit(1)  # it was killed before the line above, and no signal will come
    _work = _task.open()
    # libtiff and others write a line for every damaged file; the rows say it better.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    return os.getpid()


def _work_on(items: Sequence[Any]) -> Any:
    return _work(items, _note_start)


def _note_start() -> None:
    _item_started[:] = [monotonic(), process_time()]
