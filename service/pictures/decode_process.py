"""The process that decodes costly pictures, one after another: `python -m service.pictures.decode_process`.

It reads questions from its standard input and answers on its standard output, see `workers`. Each picture is decoded in
a fork of it, which costs a few milliseconds where a new interpreter costs a second, and leaves nothing behind. The
kernel ends the fork when it has taken its CPU time: an interval timer whose signal nobody handles needs no help of the
decoder. `STOP` ends the fork, too.
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from model.images.formats.essence import Essence
from service.errors import RequestError
from service.pictures.decoding import PictureLimits, decode_essence

LENGTH = struct.Struct(">I")
STOP = signal.SIGUSR1
"""Ends the picture that is being decoded; its answer says so."""

NICENESS = 2
"""Small pictures, the engine and the event loop go first, a little: at 10, eight busy programs on two cores kept a
picture of one CPU second waiting for 30 (2026-11-25)."""


def write(stream: BinaryIO, head: dict[str, Any], body: bytes) -> None:
    """A message: the length of a JSON object, the object, and `bytes` of body, which it counts."""
    encoded_head = json.dumps({**head, "bytes": len(body)}).encode()
    stream.write(LENGTH.pack(len(encoded_head)) + encoded_head)
    stream.write(body)
    stream.flush()


def read(stream: BinaryIO) -> tuple[dict[str, Any], bytes]:
    """The next message; raises `EOFError` at the end of the stream."""
    head: dict[str, Any] = json.loads(_exactly(stream, LENGTH.unpack(_exactly(stream, LENGTH.size))[0]))
    return head, _exactly(stream, head["bytes"])


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError("the other process has ended")
    return data


def _answer(head: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    essence = Essence(data, head["width"], head["height"], 0.0, head["orientation"])
    try:
        picture = decode_essence(essence, head["format"], head["keep_side"], PictureLimits(*head["limits"]))
    except RequestError as error:
        return {"error": error.reason, "detail": error.detail}, b""
    except MemoryError:
        return {"error": "memory"}, b""
    except Exception as error:
        return {"error": "bug", "detail": f"{type(error).__name__}: {error}"}, b""
    used = resource.getrusage(resource.RUSAGE_SELF)
    answer = {
        "cpu_s": used.ru_utime + used.ru_stime,
        "width": picture.width,
        "height": picture.height,
        "mode": picture.mode,
        "warnings": picture.warnings,
    }
    return {**answer, "size": picture.image.size}, picture.image.tobytes()


def main() -> None:
    """Answers until the other side closes the pipe."""
    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not get among the answers
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches the whole group; the service closes the pipe
    os.nice(NICENESS)
    fork = _Fork()
    signal.signal(STOP, lambda *_: fork.stop())
    write(answers, {}, b"")
    while True:
        try:
            head, data = read(questions)
        except EOFError:
            return
        answers.write(fork.answer(head, data))
        answers.flush()


class _Fork:
    """The process that decodes now."""

    def __init__(self) -> None:
        self._pid = 0

    def answer(self, head: dict[str, Any], data: bytes) -> bytes:
        """The message that the fork made, or one that says by which signal it ended."""
        reader, writer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            _decode(writer, head, data)
        os.close(writer)
        with os.fdopen(reader, "rb") as stream:
            message = stream.read()
        status = os.waitpid(self._pid, 0)[1]
        self._pid = 0
        if status == 0:
            return message
        ended = io.BytesIO()
        write(ended, {"error": "ended", "signal": status & 0x7F}, b"")
        return ended.getvalue()

    def stop(self) -> None:
        """Ends the fork, if there is one."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)


def _decode(writer: int, head: dict[str, Any], data: bytes) -> NoReturn:
    """The fork's whole life."""
    try:
        signal.signal(STOP, signal.SIG_IGN)
        _bound_memory(head["memory_bytes"])
        signal.setitimer(signal.ITIMER_PROF, head["cpu_s"])
        answer, pixels = _answer(head, data)
        signal.setitimer(signal.ITIMER_PROF, 0)
        with os.fdopen(writer, "wb") as stream:
            write(stream, answer, pixels)
        os._exit(0)
    finally:
        os._exit(1)  # not through the interpreter's exit: that is the parent's


def _bound_memory(size: int) -> None:
    """Lets the process map no more than so much on top of what it has."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + size, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
