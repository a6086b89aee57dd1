"""The service and its peers in turns: same pictures, same decoding, same engine, same client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.load.figures import middle
from tests.load.load_records import package_versions
from tests.load.measure import measure
from tests.load.sections import How, singles
from tests.load.targets import OURS, PEERS, Target

CONCURRENCIES = (1, 16, 64)
PACKAGES = ("bentoml", "fastapi", "litserve", "ray", "uvicorn")

Say = Callable[[str], None]


def compare(how: How, say: Say, targets: tuple[Target, ...] = (OURS, *PEERS)) -> list[dict[str, Any]]:
    """Medians over the rounds, per server and concurrency.

    Each round starts every server anew, and starts with another one than the round before, so that neither a lucky
    process nor a place in the order favours one.
    """
    rounds: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for number in range(how.rounds):
        for target in turned(targets, number):
            say(f"round {number + 1} of {how.rounds}: {target.label}")
            for clients, figures in _measured(target, how).items():
                rounds.setdefault((target.name, clients), []).append(figures)
    versions = package_versions(how.python, PACKAGES)
    return [
        {
            "kind": "peer",
            "server": target.name,
            "label": target.label,
            "rounds": how.rounds,
            "peers": versions,
            **middle(rounds[target.name, clients]),
        }
        for clients in CONCURRENCIES
        for target in targets
    ]


def turned(targets: tuple[Target, ...], number: int) -> tuple[Target, ...]:
    """The same targets, starting with another one."""
    start = number % len(targets)
    return targets[start:] + targets[:start]


def _measured(target: Target, how: How) -> dict[int, dict[str, Any]]:
    requests = singles(target)
    extra: dict[str, Any] = {"log_sample": 0} if target is OURS else {}
    with target.start(how.python, how.cost, **extra) as server:
        return {
            clients: measure(
                server, requests, seconds=how.seconds, warm_s=2 * how.warm_s, concurrency=clients, stages=False
            )
            for clients in CONCURRENCIES
        }
