"""Worker processes that begin with Keras imported: a server imports it once, and forks itself for each of them.

The import takes seconds, a fork milliseconds, and an export has a process for every variant. The server itself computes
nothing, so its forks find Keras as a fresh import leaves it. For every worker it answers with two numbers, a message
each: the process id, and the return code once the worker has ended.
"""

from __future__ import annotations

import contextlib
import gc
import os
import runpy
import select
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping
from typing import IO

import catalog
import console

SUPPORTED = sys.platform == "linux"  # elsewhere a system's own libraries may not survive a fork
START_SECONDS = 120.0  # for Keras to be imported
_LONGEST = 1024  # bytes of a message


class Worker:
    """A forked process in a session of its own; as much of `subprocess.Popen` as an export needs."""

    def __init__(self, nursery: Nursery, module: str, log: IO[bytes]) -> None:
        reading, writing = os.pipe()
        self.stdin = os.fdopen(writing, "wb")
        self.returncode: int | None = None
        self._nursery = nursery
        try:
            self.pid = nursery.fork(module, reading, log.fileno())
        except BaseException:
            self.stdin.close()
            nursery.close()
            raise
        finally:
            os.close(reading)

    def wait(self, timeout: float | None = None) -> int:
        """The return code: negative for a signal's number, 1 where nobody can tell any more.

        Raises:
            subprocess.TimeoutExpired: It still runs after `timeout` seconds.
        """
        if self.returncode is None:
            try:
                self.returncode = self._nursery.answer(timeout)
            except OSError:
                self.returncode = 1
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends it, if the worker still runs."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


class Nursery:
    """The server, seen from this side of its socket. It has one worker at a time, and ends with this process."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "export.nursery", str(theirs.fileno())],
                cwd=catalog.ROOT,
                env=self.environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the export
            )

    def fork(self, module: str, stdin: int, log: int) -> int:
        """The process id of a worker that runs the module as `python -m` does, with these files for its own.

        Raises:
            OSError: The server is gone, or takes longer than `START_SECONDS`.
        """
        socket.send_fds(self._socket, [module.encode()], [stdin, log])
        try:
            return self.answer(START_SECONDS)
        except subprocess.TimeoutExpired as late:
            raise TimeoutError(str(late)) from late

    def answer(self, timeout: float | None) -> int:
        """The server's next number.

        Raises:
            subprocess.TimeoutExpired: There is none within `timeout` seconds.
            OSError: The server is gone.
        """
        if not select.select([self._socket], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self._process.args, timeout or 0.0)
        if not (message := self._socket.recv(_LONGEST)):
            raise ConnectionResetError("export.nursery is gone")
        return int(message)

    @property
    def alive(self) -> bool:
        """Whether the server runs."""
        return self._process.poll() is None

    def close(self) -> None:
        """Ends the server; a worker that still runs is its asker's to end."""
        self._socket.close()
        self._process.kill()
        self._process.wait()


def main(served: socket.socket) -> None:
    """Forks a worker for every message, until nobody is there to send one."""
    with console.overlooked(*console.LOOKED_FOR):
        import keras  # noqa: F401  # TensorFlow with it

    gc.freeze()  # what was imported stays where it is, in pages that the workers share
    while True:
        message, files, _, _ = socket.recv_fds(served, _LONGEST, 2)
        if not message:
            return
        if not (pid := os.fork()):
            _become(message.decode(), served, *files)
        for file in files:
            os.close(file)
        served.send(str(pid).encode())
        served.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())


def _become(module: str, served: socket.socket, stdin: int, log: int) -> None:
    """Runs the module in this process, to its end."""
    status = 1
    try:
        os.setsid()
        served.close()
        for file, its in ((stdin, 0), (log, 1), (log, 2)):
            os.dup2(file, its)
        os.close(stdin)
        os.close(log)
        sys.argv = [module]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    with contextlib.suppress(OSError):  # whoever asked is gone
        main(socket.socket(fileno=int(sys.argv[1])))
