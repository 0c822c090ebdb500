"""Processes of ours: that they end with the one that started them, which signals they take, and free ports."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

LOOPBACK = "127.0.0.1"


def end_with_parent(number: signal.Signals) -> None:
    """Ask Linux to send this process a signal when the one that started it is killed."""
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(set_parent_death_signal, number)


def free_ports(count: int) -> list[int]:
    """Find loopback ports that nobody uses now."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]


def is_free(port: int) -> bool:
    """Tell whether a server can be started on a loopback port."""
    with socket.socket() as asked:
        asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what a server leaves that was stopped just now
        try:
            asked.bind((LOOPBACK, port))
        except (OSError, OverflowError):  # taken, not allowed, or no port at all
            return False
    return True


def stop_group(process: "subprocess.Popen[bytes]", seconds: float) -> None:
    """End a process and its group, by force after so many seconds; a second interrupt kills them at once."""
    try:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    finally:
        with suppress(ProcessLookupError):  # nobody is left
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put off what interrupts this process until the end, and block SIGINT in what starts meanwhile, which inherits it.

    The mask alone is not enough here: a signal that another thread receives interrupts the main thread all the same.
    """
    came: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    mine = {number: handler for number, handler in handlers.items() if callable(handler)}
    if threading.current_thread() is not threading.main_thread():
        mine = {}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        for number in mine:
            signal.signal(number, lambda number, _frame: came.append(number))
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in mine.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP act like Ctrl-C meanwhile; by default they would leave what was started behind."""
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:  # nohup
                signal.signal(number, signal.default_int_handler)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
