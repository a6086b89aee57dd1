"""LitServe, with its batches and its queue for many requests (`fast_queue`)."""

# No `from __future__ import annotations`: LitServe reads the annotation of `request` to choose how bodies are parsed.

from collections.abc import Sequence
from typing import Annotated, Any

import litserve
from fastapi import Body

from tests.load.costed_engine import MAX_BATCH_SIZE, Cost
from tests.load.peers.work import Pixels, Work, cost_of, options

BATCH_TIMEOUT_S = 0.01
"""LitServe's own load test waits this long; its default of 0 makes the worker spin."""


class Classifier(litserve.LitAPI):
    """Decodes and infers in the worker process."""

    def __init__(self, cost: Cost) -> None:
        super().__init__(max_batch_size=MAX_BATCH_SIZE, batch_timeout=BATCH_TIMEOUT_S, api_path="/classify")
        self._cost = cost

    def setup(self, device: str) -> None:
        """Makes the engine, in the worker."""
        self._work = Work(self._cost)

    def decode_request(self, request: Annotated[bytes, Body(media_type="image/png")]) -> Pixels:
        """Pixels of one request."""
        return self._work.decode(request)

    def batch(self, inputs: Sequence[Pixels]) -> Sequence[Pixels]:
        """The inputs as they are: `infer` stacks them."""
        return inputs

    def predict(self, x: Sequence[Pixels]) -> list[dict[str, Any]]:
        """Answers of a batch."""
        return self._work.infer(x)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One answer per request."""
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """Ready for JSON."""
        return output


if __name__ == "__main__":
    arguments = options()
    server = litserve.LitServer(Classifier(cost_of(arguments)), accelerator="cpu", fast_queue=True)
    server.run(host="127.0.0.1", port=arguments.port, generate_client_file=False, access_log=False)
