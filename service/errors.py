"""Everything `service` refuses, as one tree, and the only place that knows HTTP codes:

ServiceError
├── StartupError                the process cannot serve and ends (no HTTP answer)
│   └── SettingsError           a setting out of range
└── RequestError                one request gets a problem document (RFC 9457)
    ├── UploadError             the request body is no picture that we take
    │   ├── EmptyBody           422
    │   ├── UnsupportedFormat   415
    │   ├── TooLarge            413   too many bytes or pixels
    │   ├── Undecodable         422   truncated or damaged
    │   ├── TooCostly           422   built so that it takes far too long to decode
    │   ├── BadForm             422   multipart without exactly one file
    │   └── SlowBody            408
    ├── BadHttp                 400   bytes that are no HTTP request
    ├── HeaderTooLarge          431   a request header of too many bytes
    ├── SlowHeader              408   a request header that never ends
    ├── BadParameter            422
    ├── BadInference            400   a request of the Open Inference Protocol that does not say what it wants
    ├── Unauthorized            401   no API key, or one that is not ours
    ├── RouteNotFound           404
    ├── UnknownImage            404
    ├── UnknownModel            404   a model or version that is not served (Open Inference Protocol)
    ├── MethodNotAllowed        405
    ├── Unavailable             503   not now; come back
    │   ├── NotReady            503   the engine is loading, failing or dead
    │   ├── Crowded             503   every connection that the service may have is taken
    │   ├── StoreUnreachable    503   recent images are kept elsewhere, and that does not answer
    │   └── Draining            503   the process is about to end
    ├── QueueFull               429
    ├── DeadlineExceeded        504
    ├── EngineFailed            500   the engine raised on this very image
    ├── InternalError           500   a bug; the message tells nothing, the log tells all
    ├── ClientGone              499   nobody reads the answer; seen in metrics only
    └── OtherStatus                   whatever else the web framework refuses

A detail says what was expected, what was found and what to do about it; that of a state of the service is a sentence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar

PROBLEM_MEDIA_TYPE = "application/problem+json"


class ServiceError(Exception):
    """Base of all errors that `service` raises on purpose."""


class StartupError(ServiceError):
    """The process cannot serve; `exit_code` is what it ends with."""

    exit_code: ClassVar[int] = 1


class SettingsError(StartupError):
    """A setting that is out of range; the message names field, value and range."""

    exit_code: ClassVar[int] = 2


class RequestError(ServiceError):
    """One request that ends with a problem document.

    `reason` is the slug of the problem type and the label of `freqmerge_rejected_total`.
    """

    status: int = 500
    reason: str = "internal"
    title: str = "Internal error"

    def __init__(
        self, detail: str, *, headers: Mapping[str, str] | None = None, extra: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})


class UploadError(RequestError):
    """A request body that is no picture that we take."""


class EmptyBody(UploadError):
    """A request body without a single byte."""

    status, reason, title = 422, "empty_body", "The request body is empty"


class UnsupportedFormat(UploadError):
    """A body that is not one of the accepted picture formats."""

    status, reason, title = 415, "unsupported_format", "Not an accepted picture format"


class TooLarge(UploadError):
    """More bytes or more pixels than the service takes."""

    status, reason, title = 413, "too_large", "The picture is too large"


class Undecodable(UploadError):
    """A picture of an accepted format that is truncated or damaged."""

    status, reason, title = 422, "undecodable", "The picture cannot be decoded"


class TooCostly(UploadError):
    """A picture that takes far longer to decode than one of its size should."""

    status, reason, title = 422, "too_costly", "The picture takes too long to decode"


class BadForm(UploadError):
    """A multipart form that does not hold exactly one file in the field `file`."""

    status, reason, title = 422, "bad_form", "The form does not hold one picture"


class SlowBody(UploadError):
    """A body that did not arrive in time."""

    status, reason, title = 408, "slow_body", "The request body came too slowly"


class BadHttp(RequestError):
    """Bytes that are no HTTP request."""

    status, reason, title = 400, "bad_http", "Not a valid HTTP request"


class HeaderTooLarge(RequestError):
    """A request line and header fields of more bytes than the service takes."""

    status, reason, title = 431, "header_too_large", "The request header is too large"


class SlowHeader(RequestError):
    """A request header that did not arrive in time."""

    status, reason, title = 408, "slow_header", "The request header came too slowly"


class BadParameter(RequestError):
    """A query parameter that is missing or out of range."""

    status, reason, title = 422, "bad_parameter", "A parameter is not valid"


class BadInference(RequestError):
    """An inference request whose header or tensors are not as the model's metadata say."""

    status, reason, title = 400, "bad_inference", "The inference request is not valid"


class Unauthorized(RequestError):
    """A request without an API key that the operator gave out."""

    status, reason, title = 401, "unauthorized", "An API key is needed"


class RouteNotFound(RequestError):
    """A path that the service does not have."""

    status, reason, title = 404, "route_not_found", "No such route"


class UnknownImage(RequestError):
    """An image id that is not, or no longer, in the store."""

    status, reason, title = 404, "unknown_image", "No such image"


class UnknownModel(RequestError):
    """A model name or version that is not served."""

    status, reason, title = 404, "unknown_model", "No such model"


class MethodNotAllowed(RequestError):
    """A method that the route does not answer."""

    status, reason, title = 405, "method_not_allowed", "The route does not answer this method"


class Unavailable(RequestError):
    """A request that may well succeed a little later; says when to come back."""

    status, reason, title = 503, "unavailable", "Not available now"

    def __init__(self, detail: str, *, retry_after_s: float = 1.0, extra: Mapping[str, Any] | None = None) -> None:
        super().__init__(detail, headers=_retry_after(retry_after_s), extra=extra)


class NotReady(Unavailable):
    """The engine is loading, failing or dead."""

    status, reason, title = 503, "not_ready", "The service is not ready"


class Crowded(Unavailable):
    """More connections than the service has."""

    status, reason, title = 503, "crowded", "Too many connections are open"

    @classmethod
    def at(cls, limit: int) -> Crowded:
        """The error where as many connections are open as there may be."""
        return cls(f"expected fewer than {limit:,} open connections, found that many; connect again in a second")


class StoreUnreachable(Unavailable):
    """The store that several processes share does not answer, or not in time."""

    status, reason, title = 503, "store_unreachable", "Recent pictures cannot be reached"


class Draining(Unavailable):
    """The process finishes what it has and takes nothing new."""

    status, reason, title = 503, "draining", "The service is shutting down"

    def __init__(self, detail: str = "The service is shutting down; retry elsewhere.", **more: Any) -> None:
        super().__init__(detail, **more)


class QueueFull(Unavailable):
    """More images are waiting than the queue holds; `Batcher.retry_after_s` says when to come back."""

    status, reason, title = 429, "queue_full", "Too many images are waiting"


class DeadlineExceeded(RequestError):
    """No answer within the time that a request may take."""

    status, reason, title = 504, "deadline", "The answer took too long"


class EngineFailed(RequestError):
    """The engine could not run this image, alone in its batch."""

    status, reason, title = 500, "engine_failed", "The model failed on this picture"


class InternalError(RequestError):
    """A bug in the service."""

    status, reason, title = 500, "internal", "Internal error"


class ClientGone(RequestError):
    """The client closed the connection before its answer was ready."""

    status, reason, title = 499, "client_gone", "The client closed the connection"


class OtherStatus(RequestError):
    """A bare HTTP status that the web framework raised by itself."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail, headers=headers)
        self.status, self.title = status, HTTPStatus(status).phrase
        self.reason = self.title.lower().replace(" ", "_")


def problem(error: RequestError, instance: str, request_id: str) -> dict[str, Any]:
    """The problem document of an error: RFC 9457's members, the request id and the error's own extras."""
    return {
        "type": problem_type(error.reason),
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "instance": instance,
        "request_id": request_id,
        **error.extra,
    }


def problem_type(reason: str) -> str:
    """The URI of a problem type, listed in docs/reference/api.md."""
    return f"urn:freqmerge:problem:{reason}"


def documented() -> list[type[RequestError]]:
    """Every kind of problem that a client can meet, sorted by status and reason."""
    abstract = {UploadError, Unavailable, ClientGone, OtherStatus}
    kinds = [kind for kind in _descendants(RequestError) if kind not in abstract]
    return sorted(kinds, key=lambda kind: (kind.status, kind.reason))


def _descendants(kind: type[RequestError]) -> list[type[RequestError]]:
    return [below for child in kind.__subclasses__() for below in (child, *_descendants(child))]


def _retry_after(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(seconds)))}
