"""An app around a fake engine with default settings, on a real socket, shared by the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi import FastAPI

from service.app import create_app
from service.settings import Settings
from tests.support.doubles import FakeEngine, loader
from tests.support.live import serving


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return create_app(Settings(), loader(FakeEngine()))


@pytest.fixture(scope="module")
def url(app: FastAPI) -> Iterator[str]:
    with serving(app) as found:
        yield found
