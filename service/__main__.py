"""`python -m service`: serves until SIGTERM or Ctrl-C.

Exit codes: 0 after a shutdown, 1 if the model cannot be loaded or the engine died, 2 for a bad setting.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

from service.errors import StartupError
from service.observe import log
from service.settings import PREFIX, Settings, do_without_disk, read_settings, yield_idle_cores
from service.settings_errors import default, variable


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    options = _parser().parse_args(arguments)
    try:
        return _serve(read_settings(host=options.host, port=options.port))
    except StartupError as error:
        sys.stderr.write(f"freqmerge: {error}\n")
        return error.exit_code


def _serve(settings: Settings) -> int:
    # Here and not above, so that --help and a bad setting answer at once.
    from service.app import create_app
    from service.http import server

    yield_idle_cores()
    do_without_disk()
    log.configure(settings.log_level)
    server.check_runtime()
    opened = server.listener(settings)
    app = create_app(settings)
    app.state.service.workers.start()
    server.serve(app, app.state.service, opened)
    return 0


def end(code: int) -> NoReturn:
    """Ends the process, around an engine thread that still loads or hangs: no Python code can stop it."""
    if any(thread.daemon for thread in threading.enumerate()):
        logging.shutdown()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service",
        description="Serves image classification with frequency heatmaps over HTTP.",
        epilog=_settings_table(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", help=f"address to listen on, instead of {PREFIX}HOST")
    parser.add_argument("--port", help=f"port to listen on, instead of {PREFIX}PORT")
    return parser


def _settings_table() -> str:
    rows = [
        f"  {variable(name, field, PREFIX)} (default {default(field)})\n      {field.description}"
        for name, field in Settings.model_fields.items()
    ]
    return "settings, from the environment:\n" + "\n".join(rows)


if __name__ == "__main__":
    end(main())
