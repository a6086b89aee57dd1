"""README.md and docs/ hold together: their length, their links, the names they use."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import pytest

from tests.support.paths import DOCS, ROOT

README, ARCHITECTURE = ROOT / "README.md", DOCS / "architecture.md"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
PACKAGES = ("service", "model", "training")
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
CODE_PATH = re.compile(rf"\b(?:{'|'.join(PACKAGES)}|tests|docker)/[\w./-]*\w/?|\b(?:{'|'.join(PACKAGES)})/")
PAGE_NAME = re.compile(r"(?<![\w/])docs/[\w/-]+\.md")


class Link(NamedTuple):
    """A relative link of a page."""

    page: Path
    target: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {self.target}"


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def links() -> list[Link]:
    """Every relative link outside of code."""
    found = [Link(page, target) for page in PAGES for target in LINK.findall(FENCE.sub("", text(page)))]
    return [link for link in found if "://" not in link.target]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = HEADING.findall(FENCE.sub("", text(page)))
    words = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.strip().replace(" ", "-") for heading in words}


def rooms() -> set[str]:
    """The folders with code, as the architecture page writes them."""
    folders = {module.parent for package in PACKAGES for module in (ROOT / package).rglob("*.py")}
    return {f"{folder.relative_to(ROOT).as_posix()}/" for folder in folders}


def named() -> set[str]:
    """The folders and files that the architecture page names."""
    return set(CODE_PATH.findall(text(ARCHITECTURE)))


def diagram() -> str:
    (drawn,) = re.findall(r"^```mermaid\n(.*?)^```", text(ARCHITECTURE), re.DOTALL | re.MULTILINE)
    return str(drawn)


def test_the_readme_has_at_most_150_lines_and_1400_words_and_no_line_over_160_characters() -> None:
    lines = text(README).splitlines()
    assert len(lines) <= 150
    assert len(text(README).split()) <= 1400
    assert [line for line in lines if len(line) > 160] == []


@pytest.mark.parametrize("link", links(), ids=str)
def test_a_relative_link_leads_to_a_file_and_a_heading_that_exist(link: Link) -> None:
    address, _, anchor = link.target.partition("#")
    target = link.page.parent / unquote(address) if address else link.page
    assert target.exists()
    assert target.resolve().is_relative_to(ROOT)
    assert not anchor or anchor in anchors(target)


@pytest.mark.parametrize("page", [page for page in PAGES if page.is_relative_to(DOCS)], ids=lambda page: page.name)
def test_a_page_begins_with_who_needs_it(page: Path) -> None:
    title, paragraph = text(page).split("\n\n")[:2]
    assert title.startswith("# ")
    assert paragraph.startswith("For ")


def test_the_index_names_every_page() -> None:
    index = DOCS / "README.md"
    linked = {(DOCS / target.partition("#")[0]).resolve() for target in LINK.findall(text(index))}
    assert {page for page in DOCS.rglob("*.md") if page != index} - linked == set()


def test_every_page_of_docs_that_a_tracked_file_names_exists() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    aside = ("docs/results/", "model/weights/", "tests/weights/")  # records, and tens of megabytes without a word
    texts = [ROOT / name for name in tracked if not name.startswith(aside) and (ROOT / name).is_file()]
    mentioned = {name for file in texts for name in PAGE_NAME.findall(file.read_bytes().decode("utf-8", "ignore"))}
    assert {name for name in mentioned if not (ROOT / name).is_file()} == set()


def test_every_room_of_the_code_is_on_the_architecture_page() -> None:
    assert rooms() - named() == set()


def test_every_command_of_training_is_on_the_architecture_page() -> None:
    commands = {path.name for path in (ROOT / "training").glob("*.py") if "__main__" in text(path)}
    assert len(commands) > 10
    assert {f"training/{name}" for name in commands} - named() == set()


def test_the_architecture_page_names_nothing_that_does_not_exist() -> None:
    missing = [name for name in named() if not (ROOT / name).exists()]
    assert missing == []
    assert [name for name in named() if (ROOT / name).is_dir() and not name.endswith("/")] == []


def test_the_diagram_shows_every_room_that_a_picture_passes() -> None:
    drawn = {name.rstrip("/") for name in CODE_PATH.findall(diagram())}
    aside = {"service/ray", "service/client", "service/api/oip"}  # other ways than that of one process
    inner = {"model/images/formats", "model/merging/strategies", "model/vit/families"}
    wanted = {room.rstrip("/") for room in rooms() if room.count("/") > 1 and not room.startswith("training/")}
    assert wanted - drawn == aside | inner
    assert drawn - wanted == set()


def test_the_table_of_what_has_run_names_tests_that_exist() -> None:
    page = text(DOCS / "reference/engines.md")
    rows = [row for row in page.splitlines() if re.match(r"\| .*`(?:[\w/]+/)?test_\w+\.py` \|$", row)]
    assert len(rows) == 17
    names = {name for row in rows for name in re.findall(r"`([\w/]*test_\w+\.py)`", row)}
    places = [ROOT / name if "/" in name else ROOT / "tests/model/engines" / name for name in names]
    assert [place for place in places if not place.is_file()] == []
