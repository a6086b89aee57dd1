"""Structured logs: one JSON object per line on stderr, and a sampled line per request. Never image bytes."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

requests = logging.getLogger("service.request")


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: time (UTC), level, logger, message, and the `extra={"fields": …}`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(level: str, stream: TextIO | None = None) -> None:
    """Sends all logging of the process to `stream` (stderr) as JSON; for a program, never for a library."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # what it says at start and end we say better
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of every form that a client garbles


class Sampler:
    """Says yes to a fixed share of the calls, evenly spread; the first one included unless the share is 0."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._credit = 1.0 - share

    def __call__(self) -> bool:
        """Whether this one is taken."""
        self._credit += self._share
        if self._credit < 1.0 - 1e-9 or self._share == 0:
            return False
        self._credit -= 1.0
        return True
