"""Server processes: started, awaited, watched through /proc, and ended."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


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
        return sum(_cpu_s(pid) for pid in tree(self.pid))

    def rss_bytes(self) -> int:
        """Resident memory of all its processes."""
        return sum(_rss_bytes(pid) for pid in tree(self.pid))

    def peak_rss_bytes(self) -> int:
        """The most memory that the process that was started ever had resident."""
        return _peak_rss_bytes(self.pid)

    def stop(self, timeout_s: float = 15.0) -> int:
        """Ends it and everything that it started; its exit code."""
        family = tree(self.pid)
        self._process.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pid in family[1:]:
            _kill(pid)
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


def tree(pid: int) -> list[int]:
    """The process and everything below it, itself first."""
    parents: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for one in found:
        found.extend(parents.get(one, []))
    return found


def command(pid: int) -> str:
    """The title or command line of a process; empty if it is gone."""
    try:
        return (PROC / str(pid) / "cmdline").read_text(errors="replace")
    except OSError:
        return ""


def machine_load() -> float:
    """Runnable processes, averaged over the last minute."""
    return round(os.getloadavg()[0], 2)


@contextmanager
def busy_share() -> Iterator[list[float]]:
    """Fills the list with the share of all cores that was busy during the block, whoever used it."""
    told: list[float] = []
    before = _machine_ticks()
    yield told
    busy, total = (after - earlier for after, earlier in zip(_machine_ticks(), before, strict=True))
    told.append(round(busy / total, 3) if total else 0.0)


def _machine_ticks() -> tuple[int, int]:
    counts = [int(value) for value in (PROC / "stat").read_text().splitlines()[0].split()[1:9]]
    return sum(counts) - counts[3] - counts[4], sum(counts)


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on (field 3); empty if the process is gone."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _cpu_s(pid: int) -> float:
    fields = _stat(pid)
    return sum(int(value) for value in fields[11:15]) / TICKS if fields else 0.0


def _rss_bytes(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[21]) * PAGE if fields else 0


def _peak_rss_bytes(pid: int) -> int:
    lines = (PROC / str(pid) / "status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
