"""Whether a service can answer pictures now: facts in, the obstacle out. Pure."""

from __future__ import annotations

from typing import NamedTuple

from service.errors import Draining, NotReady, RequestError


class Facts(NamedTuple):
    """What readiness depends on."""

    dead: bool
    """The engine thread has ended with an error."""
    leaving: bool
    """The shutdown was announced."""
    loaded: bool
    """The engine is warm."""
    failing: bool
    """The engine's last batches all failed."""
    running_s: float
    """Age of the oldest batch that runs now."""
    stall_after_s: float
    """Age from which on such a batch counts as one that will not end."""
    decode_wait_s: float
    """How long a picture has waited for a thread, a process or memory to be decoded, the longest of those that wait."""
    decode_stall_after_s: float
    """From when on the decoder counts as saturated."""


def obstacle(facts: Facts) -> RequestError | None:
    """Why the service is not ready, the weightiest reason first; None if it is."""
    if facts.dead:
        return NotReady("The engine has died; the process is about to be restarted.")
    if facts.leaving:
        return Draining()
    if not facts.loaded:
        return NotReady("The model still loads; try again in a few seconds.")
    if facts.failing:
        return NotReady("The engine's last batches all failed; the operator finds the reason in the log.")
    if facts.running_s > facts.stall_after_s:
        return NotReady(f"The engine makes no progress: it has had one batch running for {facts.running_s:.0f} s.")
    if facts.decode_wait_s > facts.decode_stall_after_s:
        return NotReady(
            f"The decoder is saturated: a picture has waited for it for {facts.decode_wait_s:.0f} s; retry elsewhere."
        )
    return None
