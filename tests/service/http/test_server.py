"""A real server process on a free port: start, use, shutdown, and every way in which it refuses to start.

None of the processes can write a byte into a file (`process.READ_ONLY`): the service needs no disk.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import torch

from model import ModelConfig, build, save_checkpoint
from service.errors import StartupError
from service.http import server
from service.runtime.loading import load_model
from service.settings import PREFIX, Settings
from service.settings_errors import variable
from tests.support.doubles import picture
from tests.support.process import ROOT, Process
from tests.support.wire import png_header, problem


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights: 8 x 8 patches, 64 → 45 → 31 tokens."""
    torch.manual_seed(0)
    config = ModelConfig(
        backbone="vit_tiny_patch16_224",
        backbone_args={"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2},
        image_size=32,
        merge_layers=(0, 1),
    )
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_checkpoint(path, build(config), name="tiny", scores={"top1": 0.01, "top5": 0.05})
    return path


@pytest.fixture(scope="module")
def spawn() -> Iterator[Callable[..., Process]]:
    """Starts processes that do not outlive the tests."""
    with contextlib.ExitStack() as stack:

        def begin(*arguments: str, **settings: object) -> Process:
            process = Process(*arguments, **settings)
            stack.callback(process.stop)
            return process

        yield begin


@pytest.fixture(scope="module")
def tiny(spawn: Callable[..., Process], checkpoint: Path) -> Process:
    """A server of the tiny model."""
    return spawn("--port", "0", checkpoint=checkpoint, shutdown_timeout_s=10, body_timeout_s=2, log_sample=1)


@pytest.fixture(scope="module")
def client(tiny: Process) -> Iterator[httpx.Client]:
    with tiny.client() as found:
        tiny.told("ready")
        yield found


# The tests of the tiny server run in this order: it starts, serves and ends once.


def test_the_socket_answers_while_the_model_still_loads(tiny: Process) -> None:
    with tiny.client() as early:
        assert early.get("/live").status_code == 200
        assert "ready" not in [line["message"] for line in tiny.log], "it was too fast to see"
        problem(early.get("/ready"), 503, "not_ready")
        problem(early.post("/classify", content=picture()), 503, "not_ready")


def test_a_ready_server_classifies_and_draws(client: httpx.Client) -> None:
    assert client.get("/ready").json() == {"status": "ready"}
    answer = client.post(
        "/classify?top_k=3", content=picture(90, (64, 48), "JPEG"), headers={"Content-Type": "image/jpeg"}
    )
    body = answer.json()
    assert [len(body["predictions"]), body["model"]["name"]] == [3, "tiny"]
    drawing = client.get(body["heatmap_url"])
    assert drawing.headers["content-type"] == "image/png"
    numbers = client.get(body["heatmap_url"] + "&format=json").json()
    assert numbers["grid"] == [8, 8]
    assert min(map(min, numbers["score"])) == 0.0
    assert max(map(max, numbers["score"])) == pytest.approx(1.0, abs=0.01)
    assert {owner for row in numbers["source_map"] for owner in row} == set(range(31))


def test_the_model_card_describes_the_checkpoint(client: httpx.Client) -> None:
    body = client.get("/model").json()
    assert (body["name"], body["engine"]["kind"], body["engine"]["device"]) == ("tiny", "eager", "cpu")
    assert body["schedule"] == [45, 31, 31]
    assert body["scores"] == {"top1": 0.01, "top5": 0.05}
    assert body["engine"]["reason"] == ""


def test_bad_bodies_get_their_problem_over_a_real_socket(client: httpx.Client) -> None:
    problem(client.post("/classify", content=b""), 422, "empty_body")
    problem(client.post("/classify", content=png_header(20_000, 20_000)), 413, "too_large")
    problem(client.post("/classify", content=bytes(50 << 20)), 413, "too_large")
    problem(client.post("/classify", content=(bytes(1 << 20) for _ in range(50))), 413, "too_large")
    assert client.get("/live").status_code == 200, "the connection is still of use"


def test_a_client_that_waits_for_leave_to_send_never_sends_what_is_too_much(
    tiny: Process, client: httpx.Client
) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=10) as raw:
        raw.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 52428800\r\nExpect: 100-continue\r\n\r\n")
        assert raw.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_stops_coming_is_given_up_over_a_real_socket(client: httpx.Client) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=30) as raw:
        raw.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n\xff\xd8\xff")
        answer = b""
        while piece := raw.recv(4096):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"slow_body" in answer


def test_a_client_that_hangs_up_is_seen(tiny: Process, client: httpx.Client) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=10) as raw:
        raw.sendall(
            b"POST /classify HTTP/1.1\r\nHost: x\r\nX-Request-ID: gone\r\nContent-Length: 100\r\n\r\n\xff\xd8\xff"
        )
    assert tiny.told("request", request_id="gone")["code"] == 499


def test_metrics_of_a_real_process_hold_the_process_too(client: httpx.Client) -> None:
    text = client.get("/metrics").text
    assert 'freqmerge_http_requests_total{code="413",route="/classify"} 4.0' in text
    assert "process_cpu_seconds_total" in text
    assert 'freqmerge_model_info{device="cpu"' in text


def test_an_idle_server_uses_less_than_one_percent_of_a_core(tiny: Process, client: httpx.Client) -> None:
    def cpu_s() -> float:
        fields = Path(f"/proc/{tiny.popen.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    if not Path("/proc/self/stat").exists():
        pytest.skip("reads /proc")
    before, began = cpu_s(), time.monotonic()
    threading.Event().wait(5.0)  # the clock ticks in hundredths
    assert (cpu_s() - before) / (time.monotonic() - began) < 0.01


def test_sigterm_answers_what_is_under_way_and_exits_with_zero(tiny: Process, client: httpx.Client) -> None:
    data = picture(90, (64, 64))
    host, port = client.base_url.host, client.base_url.port or 0
    with socket.create_connection((host, port), timeout=30) as raw:
        head = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
        raw.sendall(head.encode() + data[:10])
        client.get("/live")  # the server has surely read what came before
        tiny.popen.send_signal(signal.SIGTERM)
        tiny.told("shutting down")
        raw.sendall(data[10:])
        answer = b""
        while piece := raw.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    code, text = tiny.ended()
    assert code == 0, text
    assert "Traceback" not in text


# --- other processes ---


def test_sigterm_while_the_model_loads_exits_with_zero(spawn: Callable[..., Process], checkpoint: Path) -> None:
    process = spawn("--port", "0", checkpoint=checkpoint)
    with process.client() as early:
        assert early.get("/live").status_code == 200
    process.popen.send_signal(signal.SIGTERM)
    code, text = process.ended()
    assert code == 0, text
    assert "Traceback" not in text


def test_a_checkpoint_that_cannot_be_loaded_ends_the_process_with_one_and_a_clear_message(
    spawn: Callable[..., Process], tmp_path: Path
) -> None:
    code, text = spawn("--port", "0", checkpoint=tmp_path / "lost.safetensors").ended()
    assert code == 1
    message = text.splitlines()[-1]
    assert message.startswith("freqmerge: the model cannot be loaded: expected a checkpoint file at ")
    assert "lost.safetensors" in message
    assert "Traceback" not in text


def test_a_truncated_checkpoint_is_a_start_up_error_with_a_clear_message(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(StartupError, match=r"the model cannot be loaded: .*broken\.safetensors.*expected") as caught:
        load_model(Settings(checkpoint=path))
    assert caught.value.exit_code == 1


def test_an_operators_keep_rate_replaces_the_checkpoints(checkpoint: Path) -> None:
    plain = load_model(Settings(checkpoint=checkpoint, keep_rate=1, device="cpu", engine="eager"))
    assert plain.schedule == (64, 64, 64)
    assert (plain.config.keep_rate, plain.manifest.config.keep_rate) == (1.0, 0.7)


def test_a_bad_setting_ends_the_process_with_two_before_anything_is_opened(
    spawn: Callable[..., Process],
) -> None:
    code, text = spawn(max_batch_size=0).ended()
    assert code == 2
    assert text.startswith(
        "freqmerge: cannot start: FREQMERGE_MAX_BATCH_SIZE=0 is not valid: expected a whole number, 1..1024"
    )
    assert len(text.splitlines()) == 1


def test_a_port_that_is_taken_ends_the_process_with_one_and_says_so(spawn: Callable[..., Process]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, text = spawn("--port", str(taken.getsockname()[1])).ended()
    assert code == 1
    assert "Address already in use" in text
    assert "--port" in text


def test_help_lists_every_setting() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    for name, field in Settings.model_fields.items():
        assert f"{variable(name, field, PREFIX)} " in done.stdout


def test_missing_uvloop_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUIRED", ("no_such_loop", "httptools"))
    with pytest.raises(StartupError, match=r"found no no_such_loop; install the extra: pip install"):
        server.check_runtime()


def has_ipv6_loopback() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_an_ipv6_address_is_listened_on_or_refused_by_name_where_there_is_none() -> None:
    settings = Settings(host="::1", port=0)
    if not has_ipv6_loopback():
        with pytest.raises(StartupError, match="expected to listen on ::1"):
            server.listener(settings)
        return
    with server.listener(settings) as opened:
        assert opened.family is socket.AF_INET6
