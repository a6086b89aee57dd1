"""The files that containers and monitoring are made of, as data."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from tests.support.paths import ROOT

DOCKER = ROOT / "docker"


class Reset:
    """What Compose's tag `!reset` leaves: nothing."""


class ComposeLoader(yaml.SafeLoader):
    """YAML with Compose's tags `!reset` and `!override`."""


ComposeLoader.add_constructor("!reset", lambda loader, node: Reset())
ComposeLoader.add_constructor("!override", lambda loader, node: loader.construct_sequence(node, deep=True))


def compose(path: str) -> dict[str, Any]:
    """A Compose file."""
    loaded: dict[str, Any] = yaml.load((ROOT / path).read_text(encoding="utf-8"), ComposeLoader)
    return loaded


def resets(data: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where a Compose file resets something."""
    if isinstance(data, Reset):
        yield path
    elif isinstance(data, dict):
        for name, value in data.items():
            yield from resets(value, (*path, name))


def without_resets(data: object) -> object:
    """The rest of such a file."""
    if not isinstance(data, dict):
        return data
    return {name: without_resets(value) for name, value in data.items() if not isinstance(value, Reset)}


def settings(path: str) -> Any:
    """A plain YAML file under docker/."""
    return yaml.safe_load((DOCKER / path).read_text(encoding="utf-8"))


def dashboard() -> dict[str, Any]:
    """The dashboard."""
    loaded: dict[str, Any] = json.loads((DOCKER / "grafana/dashboards/freqmerge.json").read_text(encoding="utf-8"))
    return loaded


def panel_queries() -> dict[str, str]:
    """Every expression of the dashboard by panel title and letter, variables still in it."""
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in dashboard()["panels"]
        for target in panel.get("targets", [])
    }


def alert_rules() -> list[dict[str, Any]]:
    """Every alert rule."""
    return [rule for group in settings("alerts.yml")["groups"] for rule in group["rules"]]


def stages() -> dict[str, list[str]]:
    """The instructions of every stage of the Dockerfile, continued lines joined, comments left out."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"\\\n", " ", re.sub(r"^ *#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    found: dict[str, list[str]] = {}
    for line in filter(None, (" ".join(line.split()) for line in lines)):
        if line.startswith("FROM "):
            _, _, _, name = line.split()
            found[name] = []
        found[name].append(line)
    return found


def image(target: str) -> list[str]:
    """The instructions of a target, after those of the stage that holds its contents where it has one."""
    return stages().get(f"{target}-contents", []) + stages()[target]
