"""The thread that loads the model, warms its engine up, and then serves batches until the batcher stops or it dies.

Compiled graphs and CUDA contexts stay on the thread that made them, and a death on the way is noticed in one place.
The event loop never waits for it, so the socket answers while the model still loads. An engine that takes several
batches at a time gets a further thread for each.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import threading
from collections.abc import Callable, Iterator

from service.batching.batcher import Batcher
from service.errors import StartupError
from service.runtime.served import ServedModel

log = logging.getLogger(__name__)


class EngineThread:
    """One engine behind one batcher; started and awaited on an event loop."""

    def __init__(
        self, load: Callable[[], ServedModel], batcher: Batcher, on_warm: Callable[[ServedModel], None]
    ) -> None:
        """`on_warm` hears of the model on the event loop, before anybody else sees it."""
        self.model: ServedModel | None = None
        """The model, as soon as its engine is warm."""
        self.failure: StartupError | None = None
        """Why there is none, or none any more."""
        self._load = load
        self._batcher = batcher
        self._on_warm = on_warm
        self._settled = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._live, name="freqmerge-engine", daemon=True)

    def start(self) -> None:
        """Starts the thread; on the event loop that is to hear of it."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def warm(self) -> None:
        """Returns when the engine is warm; raises the `StartupError` that kept it from that."""
        await self._settled.wait()
        if self.failure is not None:
            raise self.failure

    async def join(self, timeout_s: float) -> None:
        """Waits for the end that the batcher's `stop` brings."""
        if self.model is not None:  # while it loads nothing can stop it; it is a daemon thread
            await asyncio.to_thread(self._thread.join, timeout_s)

    # --- engine threads ---

    def _live(self) -> None:
        with self._vital():
            served = self._warm_model()
            self._on_loop(lambda: self._became_warm(served))
            more = [
                threading.Thread(target=self._serve, args=(served,), name=f"freqmerge-engine-{lane}", daemon=True)
                for lane in range(1, served.lanes)
            ]
            for thread in more:
                thread.start()
            self._batcher.serve(served.engine)
            for thread in more:
                thread.join()

    def _serve(self, served: ServedModel) -> None:
        with self._vital():
            self._batcher.serve(served.engine)

    @contextlib.contextmanager
    def _vital(self) -> Iterator[None]:
        """A block that the engine does not outlive."""
        try:
            yield
        except StartupError as error:
            self.give_up(error)
        except BaseException as error:  # whatever it is, it must not leave waiting callers without an answer
            log.critical("the engine thread died", exc_info=error)
            self.give_up(StartupError(f"the engine thread died: {type(error).__name__}: {error}"))

    def _warm_model(self) -> ServedModel:
        served = self._load()
        try:
            served.engine.warm_up()
        except Exception as error:
            raise StartupError(f"the {served.engine.kind} engine cannot run its first batch: {error}") from error
        gc.collect()
        gc.freeze()  # model and libraries live as long as the process: no collection needs to walk them
        _return_free_memory()
        return served

    def give_up(self, error: StartupError) -> None:
        """Declares the engine dead: every waiting image ends, and the host is to end the process; from any thread."""
        self.failure = error
        self._on_loop(self._settled.set)
        self._batcher.abandon("The engine has died; send the picture again.")

    def _on_loop(self, call: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody is left to tell
            if self._loop is not None:
                self._loop.call_soon_threadsafe(call)

    # --- on the event loop ---

    def _became_warm(self, served: ServedModel) -> None:
        self._on_warm(served)
        self.model = served
        self._settled.set()


def _return_free_memory() -> None:
    """Gives the system back what making the engine has freed, which glibc would keep: some 30 MB after compiling."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
