"""The files of the page as they are served: complete, from here only, and asked about again each time."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from service.api.page import HERE
from service.pictures.colormaps import COLORMAPS, lookup_table
from service.pictures.heatmap import View
from tests.support.wire import problem

pytestmark = pytest.mark.anyio
STATIC = HERE / "static"
OURS = sorted(path for path in STATIC.iterdir() if path.suffix != ".svg")


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/docs", "text/html; charset=utf-8"),
        ("/static/page.js", "text/javascript; charset=utf-8"),
        ("/static/page.css", "text/css; charset=utf-8"),
        ("/static/icon.svg", "image/svg+xml"),
        ("/static/swagger-ui-bundle.js", "text/javascript; charset=utf-8"),
        ("/samples/rocket.jpg", "image/jpeg"),
    ],
)
async def test_a_file_comes_with_its_type_and_is_not_sent_again_to_a_browser_that_has_it(
    client: httpx.AsyncClient, path: str, media_type: str
) -> None:
    first = await client.get(path)
    assert (first.status_code, first.headers["content-type"]) == (200, media_type)
    assert first.headers["cache-control"] == "no-cache"
    etag = first.headers["etag"]
    for known in (etag, f'"other", W/{etag}', "*"):
        again = await client.get(path, headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert (await client.get(path, headers={"If-None-Match": '"other"'})).content == first.content
    assert (await client.head(path)).headers["etag"] == etag


@pytest.mark.parametrize(
    "path", ["/static/none.js", "/samples/README.md", "/static/..%2FREADME.md", "/static/index.html", "/samples/"]
)
async def test_nothing_else_is_served(client: httpx.AsyncClient, path: str) -> None:
    problem(await client.get(path), 404, "route_not_found")


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_a_page_may_load_only_what_this_service_serves_and_nothing_inline(
    client: httpx.AsyncClient, path: str
) -> None:
    answer = await client.get(path)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]* src=)", answer.text)


@pytest.mark.parametrize("file", OURS, ids=lambda path: path.name)
def test_every_address_in_our_files_is_relative(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    addresses = re.findall(r"""(?:href|src|from|import|fetch\(|request\(|new URL\()\s*=?\s*["'`]([^"'`$]*)""", text)
    assert not [address for address in addresses if address.startswith("/")]
    assert set(re.findall(r"https?://[^\s\"'`<)]+", text)) <= {"https://creativecommons.org/licenses/by/2.0/"}


async def test_every_file_that_a_page_names_is_served(client: httpx.AsyncClient) -> None:
    for page in ("index.html", "docs.html"):
        named = re.findall(r'(?:href|src)="((?:static|samples)/[^"]+)"', (STATIC / page).read_text(encoding="utf-8"))
        assert named
        assert not [name for name in named if (await client.head(f"/{name}")).status_code != 200]
    for script in STATIC.glob("*.js"):
        named = re.findall(r'from "\./([^"]+)"', script.read_text(encoding="utf-8"))
        assert not [name for name in named if (await client.head(f"/static/{name}")).status_code != 200]


def test_the_page_offers_every_sample_every_colormap_and_views_that_exist() -> None:
    text = (STATIC / "index.html").read_text(encoding="utf-8")
    assert sorted(re.findall(r'data-sample="([^"]+)"', text)) == sorted(
        path.name for path in (HERE / "samples").glob("*.jpg")
    )
    assert re.findall(r"<option>([^<]+)</option>", text) == list(COLORMAPS)
    assert set(re.findall(r'name="view" id="[^"]+" value="([^"]+)"', text)) <= set(View.__args__)


@pytest.mark.parametrize("name", COLORMAPS)
def test_the_colour_scale_of_the_page_is_that_of_the_drawings(name: str) -> None:
    rule = re.search(rf'data-map="{name}"\][^(]*\(to right, ([^)]*)\)', (STATIC / "ramps.css").read_text())
    assert rule is not None
    found = [tuple(bytes.fromhex(colour.strip(" #"))) for colour in rule[1].split(",")]
    table = lookup_table(name)
    expected = [tuple(table[round(255 * step / (len(found) - 1))].tolist()) for step in range(len(found))]
    assert found == expected
