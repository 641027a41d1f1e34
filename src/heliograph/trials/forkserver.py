"""The process that trials are forked from: imports are paid once, and every trial still starts fresh.

It speaks JSON lines over a Unix socket that it inherits. Of each trial it receives two file descriptors: a socket for
events and a pipe for whatever the trial prints. CUDA is never initialised here. When the socket closes, because the
command ended or was killed, every trial is killed with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

from heliograph.trials.execute import execute_trial
from heliograph.trials.plan import Trial

__all__ = ["serve"]

PR_SET_PDEATHSIG = 1
CUDA_NOT_INITIALISED = 3
MESSAGE_BYTES = 1 << 20


def serve(control: socket.socket) -> None:
    """Serves trials until the other side closes the socket.

    Requests: ``{"preload": [...]}`` once, then ``{"trial": {...}}`` with two descriptors. Answers: ``{"ready": ...}``,
    ``{"started": id, "pid": n}`` and ``{"ended": id, "status": n, "cpu_s": x}``.
    """
    children: dict[int, str] = {}
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_read, False)
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        selector.register(wake_read, selectors.EVENT_READ)
        try:
            while True:
                for key, _ in selector.select():
                    if key.fileobj is control and not _take_request(control, children):
                        return
                    if key.fileobj == wake_read:
                        with contextlib.suppress(BlockingIOError):
                            os.read(wake_read, 4096)
                _reap(control, children)
        finally:
            for pid in children:
                _kill_group(pid)


def _take_request(control: socket.socket, children: dict[int, str]) -> bool:
    message, descriptors, _, _ = socket.recv_fds(control, MESSAGE_BYTES, 2)
    if not message:
        return False
    request = json.loads(message)
    if "preload" in request:
        missing, culprit = _preload(request["preload"])
        gc.collect()
        gc.freeze()  # or each trial's first collection would visit, and so copy, every page of what was imported
        _answer(control, {"ready": os.getpid(), "missing": missing, "touches_cuda": culprit})
        return True
    trial = Trial.from_json(request["trial"])
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            control.close()
            code = _child(trial, *descriptors)
        finally:
            os._exit(code)
    for descriptor in descriptors:
        os.close(descriptor)
    children[pid] = trial.id
    _answer(control, {"started": trial.id, "pid": pid})
    return True


def _preload(modules: list[str]) -> tuple[dict[str, str], str]:
    """Imports what it can; a failure is told and left to the trial that needs the module.

    Returns:
        The failures, and the first module whose import initialised CUDA (its forks could not use a GPU), or ``""``.
    """
    missing = {}
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:
            missing[name] = f"{type(error).__name__}: {error}"
        if _cuda_is_initialised():
            return missing, name
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    return missing, ""


def _cuda_is_initialised() -> bool:
    """Whether the CUDA driver was initialised in this process; asks without initialising it."""
    try:
        if "libcuda.so" not in Path("/proc/self/maps").read_text():
            return False
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return bool(driver.cuCtxGetCurrent(ctypes.byref(ctypes.c_void_p())) != CUDA_NOT_INITIALISED)


def _child(trial: Trial, events_fd: int, output_fd: int) -> int:
    """The trial's process: own session, own output, dies with the server."""
    server = os.getppid()
    os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != server:
            return 1
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(output_fd, 1)
    os.dup2(output_fd, 2)
    os.close(output_fd)
    # A new stdout object: the server's may hold a closed or foreign buffer.
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False, errors="replace")
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False, errors="replace")
    events = socket.socket(fileno=events_fd)

    def emit(kind: str, value: Any) -> None:
        events.sendall(json.dumps({kind: value}).encode() + b"\n")

    try:
        record = execute_trial(trial, emit)
        emit("record", record.to_json())
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
    return 0


def _reap(control: socket.socket, children: dict[int, str]) -> None:
    while children:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if pid in children:
            cpu_s = usage.ru_utime + usage.ru_stime
            _kill_group(pid)
            _answer(control, {"ended": children.pop(pid), "status": status, "cpu_s": cpu_s})


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _answer(control: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):
        control.sendall(json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
