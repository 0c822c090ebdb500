"""Steps of a flow: what can pass by itself is tried again, and nothing that is told holds a path of this machine."""

import flows  # noqa: F401  before prefect: it turns telemetry off

# isort: split

import errno
import functools
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Failed

from agewatch.errors import AgewatchError
from agewatch.settings import without_paths

_STAYS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})
_DELAYS = [5.0, 30.0, 120.0]  # seconds, up to twice as long by chance
P = ParamSpec("P")
T = TypeVar("T")


def step(*, timeout_seconds: float | None = None) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Make a function a Prefect task that is tried again where its error can pass, after some seconds and by chance.

    Other errors are raised as they are where it is called, but Prefect is told of them without paths.
    """

    def stepped(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def told(*args: P.args, **kwargs: P.kwargs) -> Any:
            try:
                return function(*args, **kwargs)
            except TimeoutError:
                raise
            except (AgewatchError, OSError) as error:  # as a state, whose message is ours; raised, it has a trace
                return failed(error)

        made = Task(
            told,
            timeout_seconds=timeout_seconds,
            retries=len(_DELAYS),
            retry_delay_seconds=_DELAYS,
            retry_jitter_factor=1.0,
            retry_condition_fn=_is_tried_again,
        )

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            found = made(*args, **kwargs)
            if isinstance(found, State):
                raise _error_of(found)
            return cast(T, found)

        return call

    return stepped


def can_pass(error: object) -> bool:
    """Whether an error may be gone at the next try: of the system, but no full disk, no missing right, no time-out."""
    return isinstance(error, OSError) and not isinstance(error, TimeoutError) and error.errno not in _STAYS


def failed(error: Exception) -> State[Any]:
    """The state of what ended with an error, told without paths, and in full on standard error."""
    print(f"agewatch: {error}", file=sys.stderr, flush=True)
    return Failed(message=without_paths(str(error)), data=error)


def _is_tried_again(_task: Any, _run: TaskRun, state: State[Any]) -> bool:
    return can_pass(_error_of(state))


def _error_of(state: State[Any]) -> Exception:
    held = getattr(state.data, "result", state.data)  # Prefect wraps what a step returned
    return held if isinstance(held, Exception) else AgewatchError(state.message or "The step failed.")
