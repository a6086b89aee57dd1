"""Server processes: started, awaited, watched, and ended."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import psutil


class Server:
    """A server in a process group of its own; use as a context, which ends all of it."""

    def __init__(
        self, command: Sequence[str], port: int, ready: str, *, folder: Path = Path(), extra: Mapping[str, str] = {}
    ) -> None:
        self.port = port
        self._ready = ready
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            command,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
            env={**inherited(), **extra},
        )

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        return self._process.pid

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def wait(self, timeout_s: float = 300.0) -> None:
        """Returns when the server is ready; raises `RuntimeError` with its log if it is not in time."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until and self._process.poll() is None:
            if status(self.port, self._ready) == 200:
                return
            time.sleep(0.2)
        raise RuntimeError(f"expected a server that is ready, found:\n{self.log()[-3000:]}")

    def log(self) -> str:
        """What it has written."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def cpu_s(self) -> float:
        """CPU seconds of all its processes that live, and of those that they have waited for."""
        return _total(self.pid, lambda process: sum(process.cpu_times()[:4]))

    def rss_bytes(self) -> int:
        """Resident memory of all its processes."""
        return int(_total(self.pid, lambda process: process.memory_info().rss))

    def peak_rss_bytes(self) -> int:
        """The most memory that the process that was started ever had resident."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()  # psutil has no peak
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))

    def stop(self, timeout_s: float = 15.0) -> int:
        """Ends it and everything that it started; its exit code."""
        family = tree(self.pid)
        self._process.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for process in family[1:]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._log.close()
        return self._process.returncode


def end_with_context() -> None:
    """Makes SIGTERM leave all contexts, so that no server outlives the program that started it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def inherited() -> dict[str, str]:
    """The environment that servers get: this process's own."""
    return dict(os.environ)


def status(port: int, path: str, timeout_s: float = 2.0) -> int:
    """The status of a GET; 0 if there is no answer."""
    return fetch(port, path, timeout_s)[0]


def fetch(port: int, path: str, timeout_s: float = 10.0) -> tuple[int, bytes]:
    """Status and body of a GET; 0 if there is no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def tree(pid: int) -> list[psutil.Process]:
    """The process and everything below it, itself first; empty if it is gone."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def command(process: psutil.Process) -> str:
    """The title or command line of a process; empty if it is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def machine_load() -> float:
    """Runnable processes, averaged over the last minute."""
    return round(os.getloadavg()[0], 2)


@contextmanager
def busy_share() -> Iterator[list[float]]:
    """Fills the list with the share of all cores that was busy during the block, whoever used it."""
    shares: list[float] = []
    psutil.cpu_percent()  # the next call tells of the time since this one
    yield shares
    shares.append(round(psutil.cpu_percent() / 100, 3))


def _total(pid: int, read: Callable[[psutil.Process], float]) -> float:
    total = 0.0
    for process in tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended just now
            total += read(process)
    return total
