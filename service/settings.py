"""Every setting of the service, and the only file that reads the environment (`FREQMERGE_*`, and some of `OTEL_*`)."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service import origins
from service.errors import SettingsError
from service.settings_errors import explain, explain_unknown, variable

PREFIX = "FREQMERGE_"

FORM_OVERHEAD_BYTES = 64 * 1024
"""What a multipart form may hold beside its pictures: boundaries, headers, other fields."""

KIB = 1 << 10
MIB = 1 << 20

CPU_BATCH_SIZE = 8
"""Most images of one batch on a CPU: more at once are no faster there, keep the first waiting and take memory each."""

_SERVICE_LINK = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT_\d+_(TCP|UDP|SCTP)(_\w+)?$")

_REDIS = re.compile(
    r"(rediss?://([^/@\s?#]*@)?([\w.-]+|\[[\da-fA-F:.]+\])(:\d{1,5})?(/\d*)?|unix://([^/@\s?#]*@)?/[^\s?#]+)"
    r"(\?(db|ssl_\w+)=[^\s&#]*(&(db|ssl_\w+)=[^\s&#]*)*)?"
)
"""An address; its options are the database and those of TLS, for any other could change what is read and written."""


_HTTP_URL = r"^https?://[^\s/?#]+(/[^\s?#]*)?$"


class Settings(BaseSettings):
    """Frozen settings; a field is the environment variable `FREQMERGE_<FIELD>` or its alias, unset if it is empty."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

    # the model
    checkpoint: Path | None = Field(None, description="checkpoint to serve; unset: the one that ships with the package")
    keep_rate: float | None = Field(
        None,
        ge=0.5,
        le=1,
        description="share of patch tokens kept by a merging block, instead of the checkpoint's; "
        "1 serves the plain Vision Transformer",
    )
    alpha: float | None = Field(
        None, ge=0, le=1, description="frequency penalty weight, instead of the checkpoint's; 0 is ToMe"
    )
    engine: Literal["auto", "eager", "inductor", "openvino", "tensorrt"] = Field(
        "auto", description="how the model runs; auto takes the best that the machine has"
    )
    precision: Literal["auto", "fp32", "fp16", "bf16", "int8"] = Field(
        "auto",
        description="numbers that the model computes with; auto is fp16 on CUDA, and on a CPU the fastest whose cost "
        "in accuracy is measured and small",
    )
    engine_cache: Path | None = Field(
        None,
        description="folder that keeps TensorRT and OpenVINO engines from one start to the next; "
        "unset: one is built at every start",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="where the model runs: auto, cpu, cuda or cuda:N",
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="CPU threads of the model; unset: one per core, or what a container's CPU limit leaves",
    )

    # the socket
    host: str = Field("127.0.0.1", min_length=1, description="address to listen on; 0.0.0.0 is every IPv4 address")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one and logs it")
    keep_alive_s: int = Field(
        65,
        ge=1,
        le=3600,
        description="how long an idle connection stays open; longer than a proxy's 60 s on purpose",
    )
    max_connections: int = Field(
        1024,
        ge=1,
        le=1_000_000,
        description="most open connections; one more takes the place of the one that has kept the service waiting "
        "longest, or gets 503 where each is owed an answer",
    )
    max_header_bytes: int = Field(
        64 * KIB,
        ge=8 * KIB,
        le=MIB,
        description="most bytes of a request line and its header fields together (431)",
    )
    header_timeout_s: float = Field(
        10, gt=0, le=3600, description="longest time from the first byte of a request header to its end (408)"
    )
    shutdown_delay_s: float = Field(
        0,
        ge=0,
        le=600,
        description="how long to serve on after SIGTERM, not ready already, so that load balancers notice",
    )
    shutdown_timeout_s: int = Field(
        20, ge=1, le=3600, description="how long requests under way may take to finish after that"
    )

    root_path: str | None = Field(
        None,
        pattern=r"^(/[\w.~-]+)+$",
        description="path prefix under which a proxy shows the service, such as /vision; whether it strips it or not",
    )

    # access
    api_keys: SecretStr | None = Field(
        None,
        description="accepted API keys, separated by commas; without any, here and in the file, none is asked for",
    )
    api_keys_file: Path | None = Field(
        None,
        description="file with one more API key per line; empty lines and those that begin with # are skipped",
    )
    cors_origins: str | None = Field(
        None,
        description="origins of web pages that may call the service, such as https://shop.example, separated by "
        "commas; * is any",
    )

    # batches and queue
    max_batch_size: int = Field(
        32, ge=1, le=1024, description=f"most images of one batch; without this setting {CPU_BATCH_SIZE} on a CPU"
    )
    max_queue_delay_s: float = Field(
        0, ge=0, le=10, description="how long a free engine holds a batch that is not full; 0 never waits"
    )
    max_queue_size: int = Field(
        256,
        ge=1,
        le=100_000,
        description="most images that may be decoded or wait at a time; more are refused (429)",
    )
    request_timeout_s: float = Field(
        30, gt=0, le=3600, description="longest time from the last byte of a picture to its answer (504)"
    )
    stall_after_s: float = Field(
        60, gt=0, le=3600, description="age of a running batch from which on the service reports not ready"
    )

    # several replicas, on Ray Serve
    engine_replicas: int = Field(1, ge=1, le=1024, description="engine replicas on Ray Serve, one per GPU")
    ingress_min_replicas: int = Field(
        1, ge=1, le=1024, description="fewest replicas on Ray Serve that speak HTTP and decode"
    )
    ingress_max_replicas: int = Field(
        4, ge=1, le=1024, description="most of them; Ray adds and removes them with the requests under way"
    )

    # pictures
    max_upload_bytes: int = Field(10 * MIB, ge=1024, le=1 << 30, description="most bytes of one picture (413)")
    max_pixels: int = Field(50_000_000, ge=1024, le=500_000_000, description="most pixels of one JPEG (413)")
    max_full_pixels: int = Field(
        25_000_000,
        ge=1024,
        le=500_000_000,
        description="most pixels in any other format, which is decoded at its full size; at most max_pixels (413)",
    )
    max_side: int = Field(16_384, ge=32, le=65_535, description="longest side of a picture in pixels (413)")
    max_batch_files: int = Field(
        64, ge=1, le=1024, description="most pictures of one request to /classify/batch or the inference protocol"
    )
    max_batch_upload_bytes: int = Field(
        64 * MIB, ge=1024, le=1 << 32, description="most bytes of such a request as a whole (413)"
    )
    max_body_bytes: int = Field(
        512 * MIB,
        ge=MIB,
        le=1 << 40,
        description="most memory of all request bodies at a time, until their answers; then slow ones end (408), or "
        "the newest is refused (429)",
    )
    body_timeout_s: float = Field(
        20,
        gt=0,
        le=3600,
        description="longest silence in a request body, and the time over which its rate is measured (408)",
    )
    min_body_bytes_per_s: int = Field(
        32 * KIB,
        ge=0,
        le=1 << 30,
        description="fewest bytes per second of a request body, over body_timeout_s (408); 0 only bounds silence",
    )
    max_decoding_bytes: int = Field(
        512 * MIB,
        ge=MIB,
        le=1 << 40,
        description="most memory of pictures being decoded at a time; more wait, and one that needs more runs alone",
    )
    decode_threads: int = Field(2, ge=1, le=64, description="threads that decode, draw and encode pictures")
    decode_workers: int = Field(
        2, ge=1, le=64, description="processes that decode what may take long, beside the threads; started when needed"
    )
    decode_cpu_s: float = Field(
        1.8, gt=0, le=600, description="most CPU time that such a process may take for one picture (422)"
    )
    decode_stall_after_s: float = Field(
        5, gt=0, le=3600, description="how long a picture may wait to be decoded before the service reports not ready"
    )
    heatmap_max_side: int = Field(
        2048, ge=256, le=8192, description="largest `size` of a heatmap, longer side in pixels"
    )

    # recent images
    store_max_images: int = Field(
        256,
        ge=0,
        le=1_000_000,
        description="most classified images kept in memory for GET /heatmap; 0 keeps none",
    )
    store_max_bytes: int = Field(
        128 * MIB,
        ge=0,
        le=1 << 40,
        description="most bytes of kept images; at least max_upload_bytes, or 0 to keep none",
    )
    store_ttl_s: float = Field(900, gt=0, le=604_800, description="how long an image is kept after its classification")

    store_url: SecretStr | None = Field(
        None,
        description="Redis that keeps these images for several processes, such as redis://:password@host:6379/0, "
        "rediss:// (TLS) or unix:///path; unset: memory of the process",
    )
    store_timeout_s: float = Field(
        0.25, gt=0, le=10, description="longest wait for that Redis; a picture is classified without it then"
    )

    # logs
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")
    log_sample: float = Field(
        0.1,
        ge=0,
        le=1,
        description="share of requests that leave a line in the log; those that failed (5xx) always do",
    )

    # traces: OpenTelemetry's own variables, of which its library reads the rest
    otel_exporter_otlp_endpoint: str | None = Field(
        None,
        validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT",
        pattern=_HTTP_URL,
        description="collector that takes traces over OTLP/HTTP, such as http://collector:4318; unset: none are made",
    )
    otel_exporter_otlp_traces_endpoint: str | None = Field(
        None,
        validation_alias="OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        pattern=_HTTP_URL,
        description="the same with the whole path, such as http://collector:4318/v1/traces; wins",
    )
    otel_exporter_otlp_protocol: str = Field(
        "http/protobuf",
        validation_alias="OTEL_EXPORTER_OTLP_PROTOCOL",
        description="how traces are sent: http/protobuf, and nothing else while an endpoint is set",
    )
    otel_exporter_otlp_traces_protocol: str | None = Field(
        None, validation_alias="OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", description="the same, only for traces; wins"
    )
    otel_traces_exporter: str = Field(
        "otlp",
        validation_alias="OTEL_TRACES_EXPORTER",
        description="otlp, or none for no traces although an endpoint is set",
    )
    otel_sdk_disabled: str = Field(
        "false", validation_alias="OTEL_SDK_DISABLED", description="true makes no traces although an endpoint is set"
    )

    @field_validator("engine", "precision", "device", "log_level", mode="before")
    @classmethod
    def _lower_case(cls, value: Any) -> Any:
        return value.strip().lower() if isinstance(value, str) else value

    @field_validator("cors_origins")
    @classmethod
    def _could_come_from_a_browser(cls, value: str | None) -> str | None:
        if value is not None and (faults := [fault for origin in _listed(value) if (fault := origins.fault(origin))]):
            raise ValueError(f"expected origins that a browser sends, found {'; found '.join(faults)}")
        return value

    @field_validator("store_url")
    @classmethod
    def _names_a_redis(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _REDIS.fullmatch(value.get_secret_value()):
            raise ValueError("no address of a Redis")  # explain() says what is expected, and hides what was found
        return value

    @model_validator(mode="after")
    def _store_holds_an_upload(self) -> Settings:
        if self.keeps_images and self.store_max_bytes < self.max_upload_bytes:
            raise ValueError(
                f"{PREFIX}STORE_MAX_BYTES={self.store_max_bytes} is not valid: expected at least "
                f"{PREFIX}MAX_UPLOAD_BYTES={self.max_upload_bytes}, so that the largest picture can be kept, "
                "or 0 to keep none"
            )
        return self

    @model_validator(mode="after")
    def _bodies_hold_the_largest(self) -> Settings:
        largest = max(self.max_upload_bytes, self.max_batch_upload_bytes) + FORM_OVERHEAD_BYTES
        if self.max_body_bytes < largest:
            raise ValueError(
                f"{PREFIX}MAX_BODY_BYTES={self.max_body_bytes} is not valid: expected at least {largest}, the largest "
                f"body that {PREFIX}MAX_UPLOAD_BYTES and {PREFIX}MAX_BATCH_UPLOAD_BYTES let pass"
            )
        return self

    @model_validator(mode="after")
    def _replicas_have_a_range(self) -> Settings:
        if self.ingress_max_replicas < self.ingress_min_replicas:
            raise ValueError(
                f"{PREFIX}INGRESS_MAX_REPLICAS={self.ingress_max_replicas} is not valid: expected at least "
                f"{PREFIX}INGRESS_MIN_REPLICAS={self.ingress_min_replicas}"
            )
        return self

    @model_validator(mode="after")
    def _traces_can_be_sent(self) -> Settings:
        if self.traces_url is None:
            return self
        if self.otel_traces_exporter.lower() != "otlp":
            raise ValueError(
                f"OTEL_TRACES_EXPORTER={self.otel_traces_exporter} is not valid: expected otlp, or none for no traces"
            )
        name, protocol = "OTEL_EXPORTER_OTLP_PROTOCOL", self.otel_exporter_otlp_protocol
        if self.otel_exporter_otlp_traces_protocol is not None:
            name, protocol = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", self.otel_exporter_otlp_traces_protocol
        if protocol != "http/protobuf":
            raise ValueError(
                f"{name}={protocol} is not valid: expected http/protobuf, the only protocol here; set "
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf and OTEL_EXPORTER_OTLP_TRACES_ENDPOINT to a port "
                "that speaks it, mostly 4318, or OTEL_TRACES_EXPORTER=none for no traces"
            )
        return self

    @property
    def traces_url(self) -> str | None:
        """Where traces are sent, None where none are made."""
        if self.otel_sdk_disabled.lower() == "true" or self.otel_traces_exporter.lower() == "none":
            return None
        if self.otel_exporter_otlp_traces_endpoint is not None:
            return self.otel_exporter_otlp_traces_endpoint
        base = self.otel_exporter_otlp_endpoint
        return None if base is None else f"{base.rstrip('/')}/v1/traces"

    @property
    def keeps_images(self) -> bool:
        """Whether classified images are kept at all."""
        return self.store_max_images > 0 and self.store_max_bytes > 0

    @property
    def max_images_per_request(self) -> int:
        """Most pictures of one request: more than the queue holds could never be admitted."""
        return min(self.max_batch_files, self.max_queue_size)

    def max_batch_size_on(self, device: str) -> int:
        """The most images of one batch on a device of this type, cpu or cuda: what was set, or the default there."""
        if device == "cpu" and "max_batch_size" not in self.model_fields_set:
            return CPU_BATCH_SIZE
        return self.max_batch_size

    @property
    def allowed_origins(self) -> list[str]:
        """Origins of `cors_origins`, none if it is unset."""
        return [] if self.cors_origins is None else _listed(self.cors_origins)

    @property
    def config_overrides(self) -> dict[str, float]:
        """Fields of the checkpoint's config that the operator replaces."""
        wanted = {"keep_rate": self.keep_rate, "alpha": self.alpha}
        return {name: value for name, value in wanted.items() if value is not None}


def read_settings(**overrides: Any) -> Settings:
    """The settings of the environment, with `overrides` on top; raises `SettingsError`.

    An override that is None counts as not given. A variable that is no setting is an error: it would be a
    misspelt one that silently does nothing.
    """
    if unknown := unknown_variables(os.environ):
        raise SettingsError(explain_unknown(unknown, Settings.model_fields, PREFIX))
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        raise SettingsError(explain(error, Settings.model_fields, PREFIX)) from None


def _listed(text: str) -> list[str]:
    """The entries between commas."""
    return [entry.strip() for entry in text.split(",")]


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Names that look like settings and are none; what Kubernetes adds for Services is left out."""
    known = {variable(name, field, PREFIX) for name, field in Settings.model_fields.items()}
    ours = (name for name in environment if name.upper().startswith(PREFIX) and name.upper() not in known)
    return sorted(name for name in ours if environment[name] and not _of_kubernetes(name.upper(), environment[name]))


def _of_kubernetes(name: str, value: str) -> bool:
    return bool(_SERVICE_LINK.search(name)) or (name.endswith("_PORT") and "://" in value)


def yield_idle_cores() -> None:
    """Lets the model's CPU threads sleep while they wait for each other, unless the operator says otherwise.

    By default they spin. Where another process, or our own event loop, has one of the cores, the others then burn
    theirs until it comes back: measured on two shared cores, one picture took 23 to 200 ms instead of 11 to 17.
    It has to be said before the tensor library is loaded.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def do_without_disk() -> None:
    """Lets the tensor library load where no file can be written: on a full disk, or a read-only one without /tmp.

    When it is loaded it makes a folder for what its compiler keeps, in the temporary folder, and fails where there is
    none. Any folder that exists will do: only the engine `inductor` writes there, and it fails by itself if it cannot.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.sep)
