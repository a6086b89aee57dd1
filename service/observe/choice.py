"""Where traces go: nowhere, or to the collector that the settings name."""

from __future__ import annotations

from service.errors import StartupError
from service.observe.traces import Traces
from service.settings import Settings


def open_traces(settings: Settings) -> Traces | None:
    """Traces for the collector of the settings, None without one; raises `StartupError` if a package is missing."""
    if settings.traces_url is None:
        return None
    try:
        from service.observe.otel_traces import OtelTraces
    except ImportError as error:
        raise StartupError(
            f"expected OpenTelemetry's packages, which OTEL_EXPORTER_OTLP_ENDPOINT needs, found none ({error}); "
            "install them: pip install 'freqmerge[otel]', or set OTEL_TRACES_EXPORTER=none"
        ) from None
    return OtelTraces(settings.traces_url)
