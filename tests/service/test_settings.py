"""Settings: frozen, validated, and clear about what is wrong."""

from __future__ import annotations

import os

import pytest
from pydantic import ValidationError

from service.errors import SettingsError
from service.settings import PREFIX, Settings, do_without_disk, read_settings, yield_idle_cores
from service.settings_errors import variable


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, field in Settings.model_fields.items():
        monkeypatch.delenv(variable(name, field, PREFIX), raising=False)


def test_the_defaults_are_valid() -> None:
    found = read_settings()
    assert (found.host, found.port, found.engine, found.max_queue_delay_s) == ("127.0.0.1", 8000, "auto", 0)
    assert found.config_overrides == {}


def test_the_environment_is_read_whatever_its_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREQMERGE_MAX_BATCH_SIZE", "64")
    monkeypatch.setenv("FREQMERGE_ENGINE", "Eager")
    monkeypatch.setenv("freqmerge_keep_rate", "1")
    found = read_settings()
    assert (found.max_batch_size, found.engine) == (64, "eager")
    assert found.config_overrides == {"keep_rate": 1.0}


def test_batches_are_small_on_a_cpu_unless_a_size_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (read_settings().max_batch_size_on("cpu"), read_settings().max_batch_size_on("cuda")) == (8, 32)
    assert read_settings(max_batch_size=4).max_batch_size_on("cpu") == 4
    monkeypatch.setenv("FREQMERGE_MAX_BATCH_SIZE", "32")
    assert read_settings().max_batch_size_on("cpu") == 32


def test_an_argument_wins_over_the_environment_and_none_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREQMERGE_PORT", "9000")
    assert read_settings(port="9001").port == 9001
    assert read_settings(port=None).port == 9000


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREQMERGE_THREADS", "")
    assert read_settings().threads is None


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("PORT", "99999", "a whole number, 0..65535"),
        ("PORT", "tcp://10.0.0.1:8000", "a whole number, 0..65535"),
        ("MAX_BATCH_SIZE", "0", "a whole number, 1..1024"),
        ("THREADS", "none", "a whole number, 1..1024"),
        ("KEEP_RATE", "0.2", "a number, 0.5..1"),
        ("REQUEST_TIMEOUT_S", "0", "a number, above 0, at most 3600"),
        ("ENGINE", "tensorrt-llm", "one of auto, eager, inductor"),
        ("DEVICE", "gpu", "auto, cpu, cuda or cuda:N"),
        ("LOG_LEVEL", "loud", "one of debug, info, warning, error"),
    ],
)
def test_a_bad_value_is_named_with_the_setting_the_value_and_the_range(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str
) -> None:
    monkeypatch.setenv(f"FREQMERGE_{name}", value)
    with pytest.raises(SettingsError) as caught:
        read_settings()
    message = str(caught.value)
    assert f"FREQMERGE_{name}={value.lower() if name in ('ENGINE', 'DEVICE', 'LOG_LEVEL') else value}" in message
    assert expected in message
    assert "\n" not in message
    assert "pydantic" not in message


def test_every_bad_value_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREQMERGE_PORT", "-1")
    monkeypatch.setenv("FREQMERGE_ALPHA", "2")
    with pytest.raises(SettingsError, match=r"ALPHA=2 .*PORT=-1 "):
        read_settings()


def test_a_store_too_small_for_one_upload_is_refused_and_one_that_is_off_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FREQMERGE_STORE_MAX_BYTES", "1000")
    with pytest.raises(SettingsError, match=r"STORE_MAX_BYTES=1000 .*MAX_UPLOAD_BYTES=10485760"):
        read_settings()
    monkeypatch.setenv("FREQMERGE_STORE_MAX_IMAGES", "0")
    assert not read_settings().keeps_images


def test_a_misspelt_setting_is_refused_with_the_one_that_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREQMERGE_MAX_BATCHSIZE", "64")
    monkeypatch.setenv("FREQMERGE_COLOUR", "red")
    with pytest.raises(SettingsError) as caught:
        read_settings()
    assert str(caught.value) == (
        "cannot start: FREQMERGE_COLOUR is not a setting; FREQMERGE_MAX_BATCHSIZE is not a setting "
        "(did you mean FREQMERGE_MAX_BATCH_SIZE?); docs/reference/configuration.md lists them all"
    )
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://:p%40ss@redis.example:6379/0",
        "redis://user:secret@[::1]:6379",
        "rediss://redis.example:6380/1?ssl_ca_certs=/etc/ca.pem&ssl_cert_reqs=required",
        "unix:///run/redis.sock",
        "unix://:secret@/run/redis.sock?db=2",
    ],
)
def test_the_address_of_a_store_is_taken_and_not_shown(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("FREQMERGE_STORE_URL", url)
    found = read_settings()
    assert found.store_url is not None
    assert found.store_url.get_secret_value() == url
    assert url not in repr(found) + str(found.model_dump())


@pytest.mark.parametrize(
    "url",
    [
        "http://:sesame@localhost:6379",
        "memcached://:sesame@localhost",
        "localhost:6379",
        "redis://",
        "redis://:sesame@localhost:many",
        "redis://:sesame@localhost/zero",
        "redis://:sesame@localhost?decode_responses=true",
        "redis://:sesame@localhost redis://other",
        "unix://:sesame@",
    ],
)
def test_an_address_that_is_no_redis_is_refused_in_one_line_that_does_not_show_it(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("FREQMERGE_STORE_URL", url)
    with pytest.raises(SettingsError) as caught:
        read_settings()
    message = str(caught.value)
    assert message.startswith("cannot start: FREQMERGE_STORE_URL=(hidden) is not valid: expected a text as described (")
    assert "such as redis://:password@host:6379/0, rediss:// (TLS) or unix:///path" in message
    assert "sesame" not in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FREQMERGE_WEB_SERVICE_HOST", "10.0.0.1"),
        ("FREQMERGE_WEB_SERVICE_PORT_HTTP", "80"),
        ("FREQMERGE_WEB_PORT", "tcp://10.0.0.1:80"),
        ("FREQMERGE_WEB_PORT_80_TCP_ADDR", "10.0.0.1"),
        ("FREQMERGE_UNUSED", ""),
        ("OTHER_MAX_BATCHSIZE", "64"),
    ],
)
def test_what_kubernetes_adds_for_services_is_no_setting_and_no_mistake(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert read_settings() == Settings()


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({}, None),
        ({"ENDPOINT": "http://collector:4318"}, "http://collector:4318/v1/traces"),
        ({"ENDPOINT": "https://collector/otlp/"}, "https://collector/otlp/v1/traces"),
        ({"TRACES_ENDPOINT": "http://other:4318/spans"}, "http://other:4318/spans"),
        (
            {"ENDPOINT": "http://collector:4318", "TRACES_ENDPOINT": "http://other:4318/spans"},
            "http://other:4318/spans",
        ),
        ({"ENDPOINT": "http://collector:4317", "PROTOCOL": "grpc", "OTEL_TRACES_EXPORTER": "none"}, None),
        ({"ENDPOINT": "http://collector:4318", "OTEL_SDK_DISABLED": "TRUE"}, None),
        (
            {"ENDPOINT": "http://c:4318", "PROTOCOL": "grpc", "TRACES_PROTOCOL": "http/protobuf"},
            "http://c:4318/v1/traces",
        ),
        ({"PROTOCOL": "grpc"}, None),
    ],
)
def test_traces_go_where_opentelemetrys_own_variables_say(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], url: str | None
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name if name.startswith("OTEL_") else f"OTEL_EXPORTER_OTLP_{name}", value)
    assert read_settings().traces_url == url


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318", "expected a text as described (collector that takes traces"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "expected http/protobuf, the only protocol here; set"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json", "expected http/protobuf, the only protocol here; set"),
        ("OTEL_TRACES_EXPORTER", "jaeger", "expected otlp, or none for no traces"),
    ],
)
def test_a_collector_that_cannot_be_told_of_traces_is_refused_at_start(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        read_settings()
    assert f"{name}={value} is not valid: {words}" in str(caught.value)


def test_a_variable_of_opentelemetry_has_no_second_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREQMERGE_OTEL_SDK_DISABLED", "true")
    with pytest.raises(SettingsError, match=r"SDK_DISABLED is not a setting \(did you mean OTEL_SDK_DISABLED\?\)"):
        read_settings()


def test_every_setting_says_what_it_is() -> None:
    assert all(len(field.description or "") > 15 for field in Settings.model_fields.values())


def test_the_models_threads_sleep_while_they_wait_unless_the_operator_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    yield_idle_cores()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    yield_idle_cores()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


def test_without_a_temporary_folder_the_tensor_library_is_told_of_one_that_exists(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that what is set below ends with the test
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    do_without_disk()
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ, "there is a temporary folder"
    monkeypatch.setattr("tempfile.gettempdir", none)
    do_without_disk()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == os.sep
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "chosen")
    do_without_disk()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "chosen"
