"""`python -m tests.load.costed_ray_app`: the Ray Serve application on a Ray of its own, around a model of known cost.

Every `FREQMERGE_*` setting counts as in `serve run service.ray_app:app`.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Sequence

import ray
from ray import serve

from service.errors import StartupError
from service.ray_app import application
from tests.load.costed_engine import Cost, costed_loader
from tests.load.costed_server import parser_of, settings_of

APP = "freqmerge"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code; ends at SIGTERM, together with Ray."""
    options = parser_of("tests.load.costed_ray_app", __doc__).parse_args(arguments)
    try:
        settings = settings_of(options)
    except StartupError as error:
        sys.stderr.write(f"freqmerge: {error}\n")
        return error.exit_code
    replicas = settings.ingress_max_replicas + settings.engine_replicas
    ray.init(num_cpus=replicas, num_gpus=0, include_dashboard=False)
    serve.start(http_options={"host": settings.host, "port": settings.port})
    load = costed_loader(Cost(options.base_ms / 1000, options.per_image_ms / 1000))
    serve.run(application(settings, load, gpus=0), name=APP)
    with contextlib.suppress(SystemExit):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # Ray's own handler would end everything at once
        signal.pause()
    serve.delete(APP)  # drains
    serve.shutdown()
    ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
