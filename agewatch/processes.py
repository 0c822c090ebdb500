"""Processes of ours: that they end with the one that started them, signals, free ports, a network of their own."""

import ctypes
import fcntl
import os
import signal
import socket
import struct
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


def leave_network() -> bool:
    """Give this process and its children a network of their own, that is a loopback that nobody else can reach.

    For a process before its exec. False where the kernel does not allow it: all stays as it was.
    """
    new_user, new_network = 0x10000000, 0x40000000  # CLONE_NEWUSER and CLONE_NEWNET of unshare(2)
    libc, user, group = ctypes.CDLL(None), os.getuid(), os.getgid()
    if libc.unshare(new_network):
        if libc.unshare(new_user | new_network):
            return False
        for name, line in (("setgroups", "deny"), ("gid_map", f"{group} {group} 1"), ("uid_map", f"{user} {user} 1")):
            with suppress(OSError), open(f"/proc/self/{name}", "w") as file:
                file.write(line)
    get_flags, set_flags, is_up = 0x8913, 0x8914, 1  # SIOCGIFFLAGS, SIOCSIFFLAGS and IFF_UP of netdevice(7)
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        name, flags = struct.unpack("16sH", fcntl.ioctl(asked, get_flags, struct.pack("16sH14x", b"lo", 0))[:18])
        fcntl.ioctl(asked, set_flags, struct.pack("16sH14x", name, flags | is_up))
    return True


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
            if handler is signal.SIG_DFL:  # not with nohup, nor where the caller has its own
                signal.signal(number, signal.default_int_handler)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
