"""The service as a process of its own around an engine that is slow, or dies, on request.

`python -m tests.support.mortal`: a grey picture of the value `SLOW` takes `SLOW_S`, one of `DEADLY` ends the engine
thread, every other one takes `USUAL_S`.
"""

from __future__ import annotations

import sys
import time

from service.__main__ import end
from service.app import create_app
from service.errors import StartupError
from service.http import server
from service.observe import log
from service.settings import read_settings
from tests.support.doubles import FakeEngine, loader

SLOW, DEADLY = 100, 200
SLOW_S, USUAL_S = 0.5, 0.005


def main() -> int:
    """The exit code of `python -m service`, with another engine."""
    engine = FakeEngine()
    engine.fault = _fault
    settings = read_settings()
    log.configure(settings.log_level)
    app = create_app(settings, loader(engine))
    try:
        server.serve(app, app.state.service, server.listener(settings))
    except StartupError as error:
        sys.stderr.write(f"freqmerge: {error}\n")
        return error.exit_code
    return 0


def _fault(values: list[int]) -> None:
    time.sleep(SLOW_S if SLOW in values else USUAL_S)
    if DEADLY in values:
        raise SystemExit("killed")


if __name__ == "__main__":
    end(main())
