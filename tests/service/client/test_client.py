"""The command-line client and the Python one, against a real socket."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from pydantic import SecretStr

from model.labels import CLASS_NAMES, SUPERCLASSES
from service.app import create_app
from service.client import Answer, Client, Prediction, Refused, Unreachable
from service.client.__main__ import main
from service.settings import Settings
from tests.support.doubles import FakeEngine, loader, picture
from tests.support.live import serving
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(create_app(Settings(root_path="/vision"), loader(FakeEngine()))) as found:
        yield f"{found}/vision"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    path.write_bytes(picture(7, (64, 48)))
    return path


@pytest.mark.parametrize("slash", ["", "/"])
def test_three_lines_of_python_give_the_label(url: str, photo: Path, slash: str) -> None:
    answer = Client(url + slash).classify(str(photo), top_k=1)
    assert answer.predictions == (Prediction(7, CLASS_NAMES[7], SUPERCLASSES[7], 0.026724),)
    assert answer.heatmap_url == f"{url}/heatmap?image_id={answer.body['image_id']}"


def test_a_heatmap_comes_from_the_answer_or_from_the_picture(url: str, photo: Path) -> None:
    client = Client(url)
    again = client.heatmap(client.classify(photo), size=32, format="webp")
    assert again == client.heatmap(photo.read_bytes(), size=32, format="webp")
    drawn = Image.open(io.BytesIO(again))
    assert (drawn.format, drawn.size) == ("WEBP", (32, 24))


def test_an_answer_without_a_heatmap_says_so() -> None:
    with pytest.raises(ValueError, match="keeps no pictures"):
        Client().heatmap(Answer((), None, {}))


def test_a_refusal_is_raised_in_the_services_own_words(url: str) -> None:
    with pytest.raises(Refused, match=r"Not an accepted picture format \(415\): expected a picture") as caught:
        Client(url).classify(b"text")
    assert (caught.value.status, caught.value.reason) == (415, "unsupported_format")
    assert len(caught.value.request_id) == 16
    with pytest.raises(Refused, match="at most 10,485,760 bytes, found 31,457,280 announced"):
        Client(url).classify(bytes(30 << 20))


def test_a_wrong_address_is_told_apart_from_a_refusal(url: str) -> None:
    with pytest.raises(Unreachable, match=r"expected FreqMerge at http://127\.0\.0\.1:9/, found none: .*refused"):
        Client("http://127.0.0.1:9").classify(b"x")
    with pytest.raises(ValueError, match="expected a URL such as http"):
        Client("file:///etc/passwd")


def test_another_service_at_the_address_is_noticed(tmp_path: Path) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    class Other(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200 if "classify" in self.path else 502)
            self.end_headers()
            self.wfile.write(b"<html>welcome</html>")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        client = Client(f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(Unreachable, match="found another answer of something else"):
            client.classify(b"x")
        with pytest.raises(Unreachable, match="found status 502 of something else"):
            client.heatmap(b"x")
        server.shutdown()
        thread.join()


# --- the command ---


def test_the_command_prints_labels_and_writes_the_heatmap(
    url: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.png"
    assert main([str(photo), "--heatmap", str(out), "--url", url, "--top-k", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"  0.0267  {CLASS_NAMES[7]} ({SUPERCLASSES[7]})",
        f"  0.0098  {CLASS_NAMES[0]} ({SUPERCLASSES[0]})",
    ]
    with Image.open(out) as drawn:
        assert drawn.size == (64 * 4, 48 * 4)


def test_the_command_prints_the_whole_answer_and_the_numbers_on_request(
    url: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    assert main([str(photo), "--json", "--heatmap", str(out), "--url", url]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["name"] == "double"
    assert json.loads(out.read_text())["grid"] == [2, 3]


def test_the_command_draws_where_no_pictures_are_kept_and_presents_its_key(tmp_path: Path, photo: Path) -> None:
    key, out = tmp_path / "key", tmp_path / "out.jpg"
    key.write_text("# mine\nkey-0123456789\n")
    app = create_app(Settings(store_max_images=0, api_keys=SecretStr("key-0123456789")), loader(FakeEngine()))
    with serving(app) as url:
        assert main([str(photo), "--url", url]) == 1
        assert main([str(photo), "--url", url, "--api-key-file", str(key), "--heatmap", str(out)]) == 0
    with Image.open(out) as drawn:
        assert drawn.format == "JPEG"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["{photo}", "--url", "http://127.0.0.1:9"], 3, "is it running? (--url names another address)"),
        (["{photo}", "--url", "127.0.0.1:8000"], 2, "expected a URL such as http"),
        (["{photo}", "--top-k", "0"], 1, "A parameter is not valid (422): top_k: expected 1 or more, found '0'"),
        (["{photo}", "--view", "x-ray", "--heatmap", "{tmp}/a.png"], 1, "view: expected"),
        (["{photo}", "--score", "entropy", "--heatmap", "{tmp}/a.png"], 1, "score: expected"),
        (["{photo}", "--heatmap", "{tmp}/none/a.png"], 2, "none/a.png: No such file or directory"),
        (["{tmp}/none.jpg"], 2, "none.jpg: No such file or directory"),
        (["{photo}", "--api-key-file", "{empty}"], 2, "expected an API key, found none"),
    ],
)
def test_the_command_says_what_went_wrong_and_ends_with_a_code_for_it(
    url: str,
    photo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    empty = tmp_path / "empty"
    empty.write_text("# nothing\n")
    filled = [argument.format(photo=photo, tmp=tmp_path, empty=empty) for argument in arguments]
    assert main(filled if "--url" in filled else [*filled, "--url", url]) == code
    told = capsys.readouterr().err
    assert told.startswith("freqmerge: ")
    assert words in told


def test_a_heatmap_of_unknown_format_is_a_bad_argument(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(photo), "--heatmap", "out.tiff"])
    assert "found out.tiff" in capsys.readouterr().err


def test_the_client_imports_neither_the_tensor_library_nor_the_web_framework() -> None:
    heavy = "{'torch', 'numpy', 'PIL', 'fastapi', 'starlette', 'pydantic', 'httpx', 'orjson'}"
    code = f"import service.client.__main__, sys; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
