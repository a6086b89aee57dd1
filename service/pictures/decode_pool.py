"""Processes that decode costly pictures for this one, and stop when a picture takes too long or nobody waits.

What a process answers is read as JSON and raw pixels, never unpickled: it has read a stranger's file.
A picture is ended
- by the kernel once it has taken `cpu_s` of CPU time,
- by us once nobody wants it any more, or when its process has been silent for `SILENCE_S`.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NoReturn, cast

from PIL import Image

from model.images.formats.essence import Essence
from service.errors import ClientGone, InternalError, NotReady, RequestError, TooCostly, TooLarge, Undecodable
from service.pictures.decode_process import STOP, read, write
from service.pictures.decoding import Picture, PictureLimits
from service.pictures.kills import Kill
from service.pictures.memory_budget import always

log = logging.getLogger(__name__)

START_S = 30.0
SILENCE_S = 30.0
"""Longest wall time of a start and of a picture: the CPU time is bounded, but others may have the cores."""

LEAST_MEMORY_BYTES = 1 << 30
"""Address space that a process may take for a picture at least; what it holds of it is bounded by the budget."""

STOP_S = 1.0
"""How long a process may take to say that it has stopped."""

LOOK_S = 0.05
"""Between two looks at whether the picture is still wanted."""

_BY_SIGNAL: dict[int, Kill] = {signal.SIGPROF: "cpu", signal.SIGKILL: "abandoned"}
_REFUSALS = {kind.reason: kind for kind in (TooLarge, Undecodable)}


class _Ended(Exception):
    """A process that had to end, or did; its reason is one of `KILLS`."""

    def __init__(self, reason: Kill) -> None:
        super().__init__(reason)
        self.reason = reason


class _Process:
    """One worker process, which starts while others do something else."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "service.pictures.decode_process"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._questions, self._answers = cast(BinaryIO, self._process.stdin), cast(BinaryIO, self._process.stdout)
        self._started = False

    def ask(self, head: dict[str, Any], data: bytes, wanted: Callable[[], bool]) -> tuple[dict[str, Any], bytes]:
        """The answer; raises `_Ended` for a picture that had to be, after which `alive` tells of the process."""
        try:
            if not self._started:
                self._next(wanted, START_S)
                self._started = True
            write(self._questions, head, data)
            answer, pixels = self._next(wanted, SILENCE_S)
        except (OSError, EOFError):
            self.end()
            raise _Ended("died") from None
        if answer.get("error") == "ended":
            raise _Ended(_BY_SIGNAL.get(answer["signal"], "died"))
        return answer, pixels

    @property
    def alive(self) -> bool:
        """Whether it can be asked again."""
        return self._process.poll() is None

    def _next(self, wanted: Callable[[], bool], within_s: float) -> tuple[dict[str, Any], bytes]:
        until = time.monotonic() + within_s
        while not self._ready(LOOK_S):
            if not wanted():
                self._stop("abandoned")
            if time.monotonic() > until:
                self._stop("silent")
        return read(self._answers)

    def _ready(self, within_s: float) -> bool:
        return bool(select.select([self._answers], [], [], within_s)[0])

    def _stop(self, reason: Kill) -> NoReturn:
        """Ends the picture, and the process if it does not say at once that it has; one that starts goes on."""
        if reason == "abandoned" and not self._started:
            raise _Ended(reason)
        if reason == "abandoned":
            self._process.send_signal(STOP)
            if self._ready(STOP_S):
                read(self._answers)
                raise _Ended(reason)
        self.end()
        raise _Ended(reason)

    def end(self) -> None:
        """Ends the process at once, if it lives."""
        self._process.send_signal(STOP)  # what it has forked, first
        self._process.kill()
        for pipe in (self._questions, self._answers):
            with contextlib.suppress(OSError):  # what was not written has no reader any more
                pipe.close()
        self._process.wait()


class DecodeWorkers:
    """Up to `count` processes; each thread that asks has one for as long as its picture takes."""

    def __init__(self, count: int, cpu_s: float, memory_bytes: int) -> None:
        self.count = count
        self.busy = 0
        """Processes that decode now."""
        self.killed: Counter[Kill] = Counter()
        """Processes that ended in the middle of a picture, by `KILLS`."""
        self._cpu_s = cpu_s
        self._memory_bytes = max(memory_bytes, LEAST_MEMORY_BYTES)
        self._lock = threading.Lock()
        self._closed = False
        self.cpu_s = 0.0
        """CPU time of the pictures that were decoded to their end."""
        self._free: queue.Queue[_Process | None] = queue.Queue()
        for _ in range(count):
            self._free.put(None)

    def decode(
        self,
        essence: Essence,
        format_name: str,
        keep_side: int,
        limits: PictureLimits,
        wanted: Callable[[], bool] = always,
    ) -> Picture:
        """The picture, decoded by a process; `wanted` is asked meanwhile, and the process ended once it says no.

        Raises as `decode_essence`, and `TooCostly`, `ClientGone` or `NotReady` (no process starts).
        """
        head = {
            "width": essence.width,
            "height": essence.height,
            "orientation": essence.orientation,
            "format": format_name,
            "keep_side": keep_side,
            "limits": limits,
            "cpu_s": self._cpu_s,
            "memory_bytes": self._memory_bytes,
        }
        try:
            with self._process() as process:
                answer, pixels = process.ask(head, essence.data, wanted)
        except _Ended as ended:
            raise self._refusal(format_name, ended.reason) from None
        if "error" in answer:
            raise _error(format_name, answer)
        with self._lock:
            self.cpu_s += answer["cpu_s"]
        image = Image.frombytes("RGB", tuple(answer["size"]), pixels)
        return Picture(image, answer["width"], answer["height"], format_name, answer["mode"], tuple(answer["warnings"]))

    def start(self) -> None:
        """Starts all processes, so that the first costly picture does not wait for one."""
        for _ in range(self.count):
            with contextlib.suppress(queue.Empty, OSError):
                process = self._free.get_nowait()
                self._free.put(process or _Process())

    def close(self) -> None:
        """Ends the processes that wait; one that decodes ends with its picture."""
        self._closed = True
        with contextlib.suppress(queue.Empty):
            while True:
                if (process := self._free.get_nowait()) is not None:
                    process.end()

    @contextlib.contextmanager
    def _process(self) -> Iterator[_Process]:
        process = self._free.get()
        with self._lock:
            self.busy += 1
        try:
            process = process or self._started()
            yield process
        except _Ended as ended:
            with self._lock:
                self.killed[ended.reason] += 1
            raise
        finally:
            with self._lock:
                self.busy -= 1
            if process is not None and (self._closed or not process.alive):
                process.end()
                process = None
            self._free.put(process)

    def _started(self) -> _Process:
        try:
            return _Process()
        except OSError as error:
            log.error("no process to decode with", extra={"fields": {"error": str(error)}})
            raise NotReady("No process to decode large pictures starts; try again in a few seconds.") from None

    def _refusal(self, format_name: str, reason: Kill) -> RequestError:
        log.warning("a picture was not decoded to its end", extra={"fields": {"reason": reason, "format": format_name}})
        if reason == "abandoned":
            return ClientGone("nobody waited for the picture any more")
        if reason == "died":
            return Undecodable(
                f"expected a whole {format_name} file, found one on which the decoder broke; export it again"
            )
        limit = f"{self._cpu_s:g} s of a core" if reason == "cpu" else f"{SILENCE_S:g} s"
        return TooCostly(
            f"expected a {format_name} file that is decoded within {limit}, found one that takes longer; "
            "reduce the picture, or export it as a plain JPEG"
        )


def _error(format_name: str, answer: dict[str, Any]) -> RequestError:
    """What a process could not decode."""
    if answer["error"] == "memory":
        return TooCostly(f"expected a {format_name} file of ordinary memory, found one that needs far more; reduce it")
    if answer["error"] in _REFUSALS:
        return _REFUSALS[answer["error"]](answer["detail"])
    log.error("a decoding process failed", extra={"fields": {"error": answer["detail"]}})
    return InternalError("the service failed on this picture; the log says why")
