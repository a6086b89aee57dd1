"""What Ray is told about the two deployments, derived from the settings. Pure, and without Ray."""

from __future__ import annotations

from typing import Any

from service.ray.remote import CALLS_PER_ENGINE
from service.settings import Settings

ENGINE, INGRESS = "Engine", "Ingress"

HEALTH = {"health_check_period_s": 2.0, "health_check_timeout_s": 10.0}
"""Three refusals in a row, and Ray replaces the replica."""

LEAST_WAIT_S = 0.5
"""Ray looks that often whether a replica that is to end has answered all it had."""

BURST = 1024
"""Requests that a proxy of Ray is about to hand over count as queued: fewer would make Ray refuse a burst by itself."""

QUIET = {"enable_access_log": False}
"""The service has its own request log, which is sampled."""


def calls_under_way(settings: Settings) -> int:
    """Most calls that one ingress makes at a time."""
    return CALLS_PER_ENGINE * settings.engine_replicas


def longest_call_s(settings: Settings) -> float:
    """How long an ingress waits for an engine.

    Where the whole application ends at once, Ray hands calls to no engine any more, and they would wait until Ray kills
    the ingress and with it every answer. Half of the time that it gives an ingress leaves room for those to say so.
    """
    return min(settings.request_timeout_s, settings.shutdown_timeout_s / 2)


def engine_options(settings: Settings, gpus: int) -> dict[str, Any]:
    """One replica per GPU.

    Its queue needs no limit of Ray's: what waits for it are calls, of which an ingress makes a few at a time, and the
    replica's own batcher counts their images.
    """
    calls = calls_under_way(settings) * settings.ingress_max_replicas
    return {
        "num_replicas": settings.engine_replicas,
        "max_ongoing_requests": max(2 * settings.max_batch_size, calls),
        "ray_actor_options": {"num_cpus": 1, "num_gpus": gpus},
        **_end(settings),
    }


def ingress_options(settings: Settings) -> dict[str, Any]:
    """CPU replicas, as many as the requests under way need.

    An ingress may have more under way than its own queue and its calls hold: it is the one to refuse, with a problem
    document. Ray's own limit is the last resort, and has the same status.
    """
    held = settings.max_queue_size + calls_under_way(settings) * settings.max_batch_size
    return {
        **_replicas(settings),
        "max_ongoing_requests": 2 * held,
        "max_queued_requests": max(BURST, 2 * held),
        "backpressure_config": {"status_code": 429, "retry_after_s": 1},
        "ray_actor_options": {"num_cpus": 1},
        **_end(settings),
    }


def _replicas(settings: Settings) -> dict[str, Any]:
    least, most = settings.ingress_min_replicas, settings.ingress_max_replicas
    if least == most:
        return {"num_replicas": least}
    target = settings.max_batch_size
    return {
        "autoscaling_config": {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": target},
    }


def _end(settings: Settings) -> dict[str, Any]:
    wait_s = max(LEAST_WAIT_S, settings.shutdown_delay_s)
    return {
        "graceful_shutdown_wait_loop_s": wait_s,
        "graceful_shutdown_timeout_s": wait_s + settings.shutdown_timeout_s,
        "logging_config": QUIET,
        **HEALTH,
    }
