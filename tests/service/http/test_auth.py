"""API keys: who gets in, what stays open, and that no key is ever told."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from service import __main__ as program
from service.app import create_app
from service.errors import SettingsError
from service.http import auth
from service.observe import log
from service.settings import Settings, read_settings
from tests.service.conftest import Running
from tests.support.doubles import FakeEngine, loader, picture
from tests.support.wire import problem

pytestmark = pytest.mark.anyio
Start = Callable[..., Awaitable[Running]]
FIRST, SECOND = "first-key-0123456789", "second-key-9876543210"


def settings(**given: object) -> Settings:
    return Settings(**{"api_keys": SecretStr(f"{FIRST}, {SECOND}"), **given})  # type: ignore[arg-type]


@pytest.fixture
async def guarded(start: Start) -> httpx.AsyncClient:
    """A client without a key, of an app with two."""
    return (await start(api_keys=SecretStr(f"{FIRST}, {SECOND}"))).client


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {FIRST}"},
        {"Authorization": f"bearer  {SECOND} "},
        {"X-API-Key": FIRST},
        {"X-API-Key": SECOND, "Authorization": "Basic dXNlcjpwYXNz"},
        {"X-API-Key": "not-a-key-of-ours", "Authorization": f"Bearer {SECOND}"},
    ],
)
async def test_every_key_opens_the_service_in_either_header(
    guarded: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    answer = await guarded.post("/classify", content=picture(7), headers=headers)
    assert answer.status_code == 200
    assert answer.json()["predictions"][0]["class_id"] == 7


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": FIRST},
        {"Authorization": f"Basic {FIRST}"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {FIRST},{SECOND}"},
        {"X-API-Key": FIRST[:-1]},
        {"X-API-Key": FIRST + "0"},
        {"X-API-Key": FIRST.upper()},
        {"X-API-Key": "Schlüssel"},
    ],
)
async def test_anything_else_is_refused_with_a_challenge(guarded: httpx.AsyncClient, headers: dict[str, str]) -> None:
    encoded = {name: value.encode() for name, value in headers.items()}
    answer = await guarded.post("/classify", content=picture(7), headers=encoded)
    refused = problem(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"].startswith('Bearer realm="freqmerge"')
    assert FIRST not in answer.text
    assert refused["instance"] == "/classify"


async def test_a_wrong_key_is_called_invalid_and_a_missing_one_is_not(guarded: httpx.AsyncClient) -> None:
    missing = await guarded.get("/model")
    wrong = await guarded.get("/model", headers={"X-API-Key": "wrong-wrong"})
    assert missing.headers["www-authenticate"] == 'Bearer realm="freqmerge"'
    assert wrong.headers["www-authenticate"] == 'Bearer realm="freqmerge", error="invalid_token"'


@pytest.mark.parametrize("path", [*sorted(auth.OPEN), "/static/page.css", "/samples/rocket.jpg"])
async def test_probes_metrics_and_documentation_need_no_key(guarded: httpx.AsyncClient, path: str) -> None:
    assert (await guarded.get(path)).status_code in (200, 307)


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/classify"), ("GET", "/heatmap"), ("GET", "/labels"), ("GET", "/v2/models/double"), ("GET", "/nowhere")],
)
async def test_everything_else_needs_one_even_where_there_is_nothing(
    guarded: httpx.AsyncClient, method: str, path: str
) -> None:
    assert (await guarded.request(method, path)).status_code == 401


@pytest.mark.parametrize("path", ["/live/", "/live/../model", "/LIVE", "/live%2f..%2fmodel", "/metrics;/model"])
async def test_only_the_very_paths_are_open(guarded: httpx.AsyncClient, path: str) -> None:
    assert (await guarded.get(path)).status_code == 401


async def test_a_refusal_is_counted(start: Start) -> None:
    app = await start(api_keys=SecretStr(FIRST))
    await app.client.get("/model")
    sample = app.service.metrics.registry.get_sample_value
    assert sample("freqmerge_rejected_total", {"reason": "unauthorized"}) == 1


async def test_without_keys_everybody_is_served(client: httpx.AsyncClient) -> None:
    assert (await client.get("/model")).status_code == 200


def test_a_key_is_compared_with_all_of_them_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    constant_time = hmac.compare_digest

    def note(given: bytes, known: bytes) -> bool:
        compared.append((given, known))
        return constant_time(given, known)

    monkeypatch.setattr(auth.hmac, "compare_digest", note)
    keys = auth.Keys([FIRST, SECOND, "third-key-555"])
    found = {}
    for given in (FIRST, SECOND, "third-key-555", "x", "x" * 500):
        found[given] = (keys.accept(given), len(compared))
        compared.clear()
    assert [accepted for accepted, _ in found.values()] == [True, True, True, False, False]
    assert {count for _, count in found.values()} == {3}


def test_keys_come_from_the_file_and_the_setting_together(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# for the shop\n\n  {SECOND}  \n# {FIRST}\n")
    keys = auth.read_keys(settings(api_keys=SecretStr("third-key-555"), api_keys_file=path))
    assert keys is not None
    assert [keys.accept(given) for given in (SECOND, "third-key-555", FIRST)] == [True, True, False]


@pytest.mark.parametrize("content", ["", "\n# nobody\n"])
def test_a_list_without_a_key_is_refused_for_it_would_open_the_service(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys"
    path.write_text(content)
    with pytest.raises(SettingsError, match="expected an API key in .*, found none"):
        auth.read_keys(settings(api_keys=None, api_keys_file=path))
    with pytest.raises(SettingsError, match="found none"):
        auth.read_keys(settings(api_keys=SecretStr(" , ")))


@pytest.mark.parametrize("bad", ["short", "with a blank in it", "Schlüssel-für-alle"])
def test_a_key_that_could_be_guessed_or_not_be_sent_is_refused_without_being_shown(tmp_path: Path, bad: str) -> None:
    with pytest.raises(SettingsError, match="found another as number 2 of 2") as caught:
        auth.read_keys(settings(api_keys=SecretStr(f"{FIRST},{bad}")))
    assert bad not in str(caught.value)
    assert FIRST not in str(caught.value)


def test_a_file_that_cannot_be_read_ends_the_process_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"keys\.txt cannot be read: No such file"):
        create_app(settings(api_keys_file=tmp_path / "keys.txt"), loader(FakeEngine()))


async def test_no_key_is_in_the_log_the_model_card_the_help_or_a_dump(
    start: Start,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("FREQMERGE_API_KEYS", f"{FIRST},{SECOND}")
    app = await start(api_keys=read_settings().api_keys, log_sample=1)
    for headers in ({"X-API-Key": FIRST}, {"Authorization": f"Bearer {SECOND}"}, {"X-API-Key": FIRST + "x"}):
        await app.client.post("/classify", content=picture(7), headers=headers)
    card = (await app.client.get("/model", headers={"X-API-Key": FIRST})).text
    with pytest.raises(SystemExit):
        program.main(["--help"])
    assert [record.message for record in caplog.records].count("request") == 4
    lines = [log.JsonFormatter().format(record) for record in caplog.records]
    told = "".join([*lines, card, capsys.readouterr().out, repr(app.service.settings)])
    assert "FREQMERGE_API_KEYS" in told
    assert FIRST not in told
    assert SECOND not in told


def test_a_bad_secret_is_not_repeated() -> None:
    with pytest.raises(SettingsError, match=r"FREQMERGE_API_KEYS=\(hidden\) is not valid") as caught:
        read_settings(api_keys=[FIRST])
    assert FIRST not in str(caught.value)
