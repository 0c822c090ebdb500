"""Workers on the machines of a Ray cluster: shards go out, answers come back, and one process alone commits.

A machine needs agewatch's dependencies; code and model come with the work. One actor a core holds one engine. What
breaks or hangs there costs only itself, as in `pool`, and the shards of a machine that is lost run elsewhere.
"""

import logging
import os
import socket
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic, process_time
from typing import Any

import agewatch
from agewatch.errors import AgewatchError
from agewatch.estimator.memory import Room
from agewatch.files import replacing
from agewatch.scoring import pool
from agewatch.scoring.pool import Answer, Item, Task, Work
from agewatch.scoring.room import RoomOfMachine
from agewatch.scoring.scorer import Job, Scored
from agewatch.sources.source import FileRef

_ANSWER_SECONDS = 10.0
_STORE_BYTES = 200 * 2**20  # shards and rows are small


@dataclass(frozen=True)
class Cluster:
    """A cluster that this process is connected to. `nodes` are the live machines that have cores, by their ids."""

    nodes: dict[str, dict[str, float]]
    memory_gb: float
    most: int | None

    @property
    def workers(self) -> int:
        """One a core, or as many as were asked for."""
        cores = sum(int(resources["CPU"]) for resources in self.nodes.values())
        return min(cores, self.most or cores)

    def run(self, task: Task[Item, Answer], shards: Iterable[Sequence[Item]], _: int) -> Iterator[Answer]:
        """Do what `pool.run` does, on the cluster's machines. Raises AgewatchError where all of them are lost."""
        import ray

        sent = ray.put(_Sent.of(task, self.memory_gb) if isinstance(task, Job) else task)
        return pool.answers(task, shards, [_Actor(sent, *place) for place in self._places()])

    def _places(self) -> list[tuple[str, float]]:
        """Where workers start, on one machine after the other, and each one's part of its machine's GPUs."""
        left = {node: int(resources["CPU"]) for node, resources in self.nodes.items()}
        gpus = {node: resources.get("GPU", 0.0) / resources["CPU"] for node, resources in self.nodes.items()}
        rounds = range(max(left.values()))
        return [(node, gpus[node]) for turn in rounds for node, cores in left.items() if turn < cores][: self.workers]


@contextmanager
def connected(address: str | None, *, memory_gb: float, workers: int | None = None) -> Iterator[Cluster]:
    """Connect to a cluster (`HOST:PORT`, or `auto` for the one that this machine is part of), or start one of this
    machine alone, on loopback, which ends with this process.

    `memory_gb` is what the workers of each machine may take together. Raises AgewatchError where Ray is not installed,
    the cluster does not answer or has no cores.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # it reports to nobody
    if address is None:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray's own switch that keeps it on loopback
    try:
        import ray
    except ImportError as error:
        raise AgewatchError("Ray is not installed: pip install 'agewatch[ray]'.") from error
    if address and ":" in address:
        _require_answer(address)
    with tempfile.TemporaryDirectory(prefix="agewatch-", ignore_cleanup_errors=True) as scratch:
        here: dict[str, Any] = {
            "num_cpus": workers or len(os.sched_getaffinity(0)), "object_store_memory": _STORE_BYTES,
            "_temp_dir": scratch, "include_dashboard": False,
        }  # fmt: skip
        code: dict[str, Any] = {"py_modules": [str(Path(agewatch.__file__).parent)], "excludes": ["*.mar"]}
        if address is None:
            code["env_vars"] = {"TMPDIR": scratch}  # what its workers keep ends with it
        try:
            ray.init(
                address or "local", runtime_env=code, log_to_driver=False, logging_level=logging.ERROR,
                **({} if address else here),
            )  # fmt: skip
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            raise AgewatchError(f"The Ray cluster {address or 'of this machine'} can't be used: {error}.") from error
        try:
            ray._private.worker._worker_logs_enabled = False  # it would print on standard output what breaks
            nodes = {node: resources for node, resources in _alive().items() if resources.get("CPU", 0) >= 1}
            if not nodes:
                raise AgewatchError(f"The Ray cluster {address} has no machine with a core.")
            yield Cluster(nodes, memory_gb, workers)
        finally:
            ray.shutdown()


def _require_answer(address: str) -> None:
    """Raise AgewatchError where nobody listens: Ray itself would ask for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), _ANSWER_SECONDS).close()
    except (OSError, ValueError) as error:
        raise AgewatchError(f"The Ray cluster {address} can't be used: {error}.") from error


def _alive() -> dict[str, dict[str, float]]:
    import ray

    nodes: Any = ray.nodes
    return {node["NodeID"]: node["Resources"] for node in nodes() if node["Alive"]}


class _Actor:
    """A worker on a machine of the cluster, as a pool sees it."""

    def __init__(self, task: Any, node: str, gpus: float) -> None:
        self._task, self._node, self._gpus = task, node, gpus
        self._start()

    def _start(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

        there = On(self._node, soft=False)
        remote: Any = ray.remote
        kind = remote(num_cpus=1, num_gpus=self._gpus, concurrency_groups={"state": 1})(_OnNode)
        self._handle = kind.options(scheduling_strategy=there).remote(self._task)
        self._asked: tuple[float, Any] | None = None

    def submit(self, items: Sequence[Any]) -> Future[Any]:
        """Start on a shard; the actor opens its task before its first one."""
        self._asked = None
        return _as_future(self._handle.work.remote(list(items)))

    def hangs(self) -> bool:
        """Tell whether the item that is worked on has taken too long, or the actor gives no sign so long."""
        import ray

        if self._asked is None:
            self._asked = monotonic(), self._handle.state.options(concurrency_group="state").remote()
        since, asked = self._asked
        if not ray.wait([asked], timeout=0)[0]:
            return monotonic() - since > pool.MOST_SECONDS
        self._asked = None
        with suppress(ray.exceptions.RayError):
            return pool.takes_too_long(*ray.get(asked))
        return False  # it died, which its shard tells

    def restart(self) -> bool:
        """Start another one on the same machine, where that is still there."""
        if self._node not in _alive():
            return False
        self._start()
        return True

    def kill(self) -> None:
        """End its process at once."""
        import ray

        ray.kill(self._handle)

    def stop(self) -> None:
        """End its process."""
        self.kill()


class _OnNode:
    """What runs in an actor's process."""

    def __init__(self, task: Task[Any, Any]) -> None:
        self._task = task
        self._work: Work[Any, Any] | None = None
        self._started: tuple[float, float] | None = None

    def work(self, items: Sequence[Any]) -> Any:
        """Answer a shard."""
        if self._work is None:
            self._work = self._task.open()
        try:
            return self._work(items, self._note_start)
        finally:
            self._started = None

    def state(self) -> tuple[float, float]:
        """Seconds since the item that is worked on was begun, and how many of them on a core."""
        if self._started is None:
            return 0.0, 0.0
        began, core_seconds = self._started
        return monotonic() - began, process_time() - core_seconds

    def _note_start(self) -> None:
        self._started = monotonic(), process_time()


@dataclass(frozen=True)
class _Sent(Task[FileRef, Scored]):
    """A job with its model, in a form that finds what it needs on whatever machine it is opened."""

    job: Job
    model: bytes
    memory_gb: float

    @classmethod
    def of(cls, job: Job, memory_gb: float) -> "_Sent":
        return cls(replace(job, room=Room()), job.model_path.read_bytes(), memory_gb)

    def open(self) -> Work[FileRef, Scored]:
        """Put the model where this machine's workers find it. Raises UsageError where the archive can't be seen."""
        self.job.source.require_there()
        folder = Path(tempfile.gettempdir()) / f"agewatch-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise AgewatchError(f"The folder {folder} is another user's.")
        model = folder / f"{self.job.key.model}.mar"
        with replacing(model) as aside:
            aside.write_bytes(self.model)
        room = RoomOfMachine(self.memory_gb, os.cpu_count() or 1, folder / "room")
        return replace(self.job, model_path=model, cache=folder / "cache", room=room).open()

    def give_up(self, item: FileRef, why: str) -> Scored:
        """Answer as the job does."""
        return self.job.give_up(item, why)


def _as_future(answer: Any) -> Future[Any]:
    """An answer to come as the pool takes it: a worker that died breaks it, what the task raised is raised."""
    import ray

    ours: Future[Any] = Future()

    def tell(theirs: Future[Any]) -> None:
        error = theirs.exception()
        if error is None:
            ours.set_result(theirs.result())
        elif isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, AgewatchError):
            ours.set_exception(error.cause)
        elif isinstance(error, ray.exceptions.RayTaskError | ray.exceptions.RuntimeEnvSetupError):
            ours.set_exception(AgewatchError(f"A worker of the cluster can't work: {str(error).splitlines()[-1]}"))
        else:  # the actor, its machine or what it answered is lost
            ours.set_exception(BrokenProcessPool(str(error)))

    answer.future().add_done_callback(tell)
    return ours
