"""Forms as clients in the field write them."""

from __future__ import annotations

import httpx
import pytest

from tests.support.doubles import picture

pytestmark = pytest.mark.anyio

DOTNET = "0e2a7a5c-6a0b-4f0e-9a51-6d6f6b0b4a9d"
"""A boundary as .NET's MultipartFormDataContent makes it, and quotes it in the header."""

NAMES = ["name=file; filename=photo.png; filename*=utf-8''photo.png", 'name="file"; filename="photo.png"', "name=file"]


def form(boundary: str, disposition: str, fields: str = "", preamble: bytes = b"", epilogue: bytes = b"") -> bytes:
    head = f"--{boundary}\r\nContent-Disposition: form-data; {disposition}\r\n{fields}\r\n"
    return preamble + head.encode() + picture(5) + f"\r\n--{boundary}--\r\n".encode() + epilogue


async def classified(client: httpx.AsyncClient, body: bytes, boundary: str) -> None:
    headers = {"Content-Type": f'multipart/form-data; boundary="{boundary}"'}
    one = await client.post("/classify", content=body, headers=headers)
    assert one.status_code == 200, one.text
    assert one.json()["predictions"][0]["class_id"] == 5
    batch = await client.post("/classify/batch", content=body, headers=headers)
    assert batch.json()["results"][0]["predictions"][0]["class_id"] == 5


@pytest.mark.parametrize("disposition", NAMES)
@pytest.mark.parametrize("fields", ["", "Content-Type: application/octet-stream\r\n"], ids=["no type", "octets"])
async def test_a_form_as_net_writes_it_is_taken(client: httpx.AsyncClient, disposition: str, fields: str) -> None:
    await classified(client, form(DOTNET, disposition, fields), DOTNET)


async def test_a_name_that_net_encodes_is_told_as_it_is_meant(client: httpx.AsyncClient) -> None:
    body = form(DOTNET, "name=file; filename=\"=?utf-8?B?w6QucG5n?=\"; filename*=utf-8''%C3%A4.png")
    headers = {"Content-Type": f'multipart/form-data; boundary="{DOTNET}"'}
    answer = await client.post("/classify/batch", content=body, headers=headers)
    assert answer.json()["results"][0]["filename"] == "ä.png"


@pytest.mark.parametrize(
    "preamble",
    [b"This is a form.\r\n", b"This is a form.\n", b"\n", b"--bother\r\n", b"see\r\n--bother\r\n"],
)
@pytest.mark.parametrize("epilogue", [b"", b"That was it.\r\n", b"--b\r\nContent-Disposition: form-data\r\n\r\n"])
async def test_what_stands_around_the_parts_is_ignored_though_it_looks_like_a_boundary(
    client: httpx.AsyncClient, preamble: bytes, epilogue: bytes
) -> None:
    await classified(client, form("b", NAMES[1], preamble=preamble, epilogue=epilogue), "b")
