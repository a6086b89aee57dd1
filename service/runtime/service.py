"""Everything that lives as long as one app: engine thread, batcher, worker threads, image store, metrics.

The engine has a single thread, which loads the model, warms it up and then serves batches: compiled graphs
and CUDA contexts stay on the thread that made them, and a death on the way is noticed in one place. The event
loop never waits for it, so the socket answers while the model still loads.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np
from prometheus_client.registry import Collector

from service.batching.batcher import Batcher
from service.batching.waiting import Limits
from service.errors import Draining, NotReady, RequestError, StartupError
from service.observe.metrics import Metrics
from service.pictures import jobs
from service.pictures.budget import BodyBudget, ByteBudget
from service.runtime import card
from service.runtime.loading import ModelLoader, ServedModel
from service.runtime.pool import WorkerPool
from service.settings import Settings
from service.store.choice import open_store
from service.store.images import ImageStore

log = logging.getLogger(__name__)

TICK_S = 0.5
"""Between two looks at the event loop's lag and at the age of stored images."""

STALL_ENDS_AFTER_S = 120.0
"""How long a stall may last, once the service is not ready for it, before its process is to be started anew."""


class Service:
    """The parts of one app, opened by its start-up and closed, in reverse order, by its shutdown."""

    def __init__(self, settings: Settings, load: ModelLoader) -> None:
        self.settings = settings
        self.metrics = Metrics()
        limits = Limits(settings.max_batch_size, settings.max_queue_delay_s, settings.max_queue_size)
        self.batcher = Batcher(limits, on_batch=self.metrics.batch)
        self.pool = WorkerPool(settings.decode_threads)
        self.budget = ByteBudget(settings.max_decoding_bytes)
        self.bodies = BodyBudget(settings.max_body_bytes)
        self.store: ImageStore = open_store(settings, self.metrics.store_failed)
        self.model: ServedModel | None = None
        self.labels: list[dict[str, Any]] = []
        self.failure: StartupError | None = None
        """Why the service will never be ready (again); its host should end the process."""
        self.gather: Callable[[], Awaitable[Collector]] = self._own_metrics
        """What GET /metrics tells; a host with several replicas sets it to one that asks them all."""
        self._load = load
        self._leaving = False
        self._probing: asyncio.Task[None] | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._settled = asyncio.Event()
        self._engine_thread = threading.Thread(target=self._engine_life, name="freqmerge-engine", daemon=True)
        self.metrics.watch(self)

    # --- life ---

    async def open(self) -> None:
        """Starts the engine thread and returns at once."""
        self._loop = asyncio.get_running_loop()
        self._ticker = asyncio.create_task(self._tick())
        self._engine_thread.start()

    async def warm(self) -> None:
        """Returns when the engine is warm; raises the `StartupError` that kept it from that."""
        await self._settled.wait()
        if self.failure is not None:
            raise self.failure

    def announce_shutdown(self) -> None:
        """Not ready from now on, though requests are still served; safe in a signal handler."""
        self._leaving = True

    def refuse_new(self) -> None:
        """New pictures are refused; those under way go on."""
        self._leaving = True
        self.batcher.refuse_new()

    async def close(self, grace_s: float = 5.0) -> None:
        """Finishes what is under way, for `grace_s` at most, and ends the threads."""
        self.refuse_new()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self.batcher.drained()
        self.batcher.stop()
        if self.model is not None:  # while it loads nothing can stop it; it is a daemon thread
            await asyncio.to_thread(self._engine_thread.join, grace_s)
        self.pool.close()
        for task in (self._ticker, self._probing):
            if task is not None:
                task.cancel()
        await self.store.close()

    # --- readiness ---

    @property
    def leaving(self) -> bool:
        """Whether the shutdown was announced."""
        return self._leaving

    @property
    def ready(self) -> bool:
        """Whether the engine is warm and makes progress, and nothing ends."""
        return self._obstacle() is None

    def check_ready(self) -> None:
        """Raises `NotReady` or `Draining`, saying why; gives a failing engine the chance to recover."""
        if self.batcher.failing and self.batcher.queued == 0:
            self._probe()
        if obstacle := self._obstacle():
            raise obstacle

    def accepting(self, images: int = 1) -> ServedModel:
        """The model, if so many pictures would be taken now; raises `NotReady`, `Draining` or `QueueFull`."""
        self.batcher.check(images)
        return self.loaded()

    def loaded(self) -> ServedModel:
        """The model; raises `NotReady` while there is none."""
        if self.model is None:
            raise self._obstacle() or NotReady("the model is not loaded")
        return self.model

    def _obstacle(self) -> RequestError | None:
        if self.failure is not None:
            return NotReady("expected a running engine, found one that has died; the process is to be restarted")
        if self._leaving:
            return Draining("expected a running service, found one that is shutting down; ask another replica")
        if self.model is None:
            return NotReady("expected a warm engine, found one that still loads; try again in a few seconds")
        if self.batcher.failing:
            return NotReady("expected an engine that answers, found one whose last batches all failed; see the log")
        if (age_s := self.batcher.running_s) > self.settings.stall_after_s:
            return NotReady(f"expected an engine that makes progress, found one batch running for {age_s:.0f} s")
        return None

    # --- engine threads ---

    def _engine_life(self) -> None:
        with self._vital():
            served = self._warm_model()
            self._on_loop(self._became_warm, served)
            more = [
                threading.Thread(target=self._lane, args=(served,), name=f"freqmerge-engine-{lane}", daemon=True)
                for lane in range(1, served.lanes)
            ]
            for thread in more:
                thread.start()
            self.batcher.serve(served.engine)
            for thread in more:
                thread.join()

    def _lane(self, served: ServedModel) -> None:
        with self._vital():
            self.batcher.serve(served.engine)

    @contextlib.contextmanager
    def _vital(self) -> Iterator[None]:
        """A block that the service does not outlive."""
        try:
            yield
        except StartupError as error:
            self._engine_died(error)
        except BaseException as error:  # whatever it is, it must not leave waiting callers without an answer
            log.critical("the engine thread died", exc_info=error)
            self._engine_died(StartupError(f"the engine thread died: {type(error).__name__}: {error}"))

    def _warm_model(self) -> ServedModel:
        served = self._load(self.settings)
        try:
            served.engine.warm_up()
        except Exception as error:
            raise StartupError(f"the {served.engine.kind} engine cannot run its first batch: {error}") from error
        jobs.preload()
        gc.collect()
        gc.freeze()  # model and libraries live as long as the process: no collection needs to walk them
        return served

    def _became_warm(self, served: ServedModel) -> None:
        self.labels = card.labels(served)
        info = card.model_info(served)
        self.metrics.set_model(info, served.manifest.class_names)
        self.store.serve(served.fingerprint)
        self.model = served
        self._settled.set()
        log.info("ready", extra={"fields": {**info, "reason": served.engine.reason}})

    def _engine_died(self, error: StartupError) -> None:
        self.failure = error
        self._on_loop(self._settled.set)
        self.batcher.abandon("expected a running engine, found one that has died; send the picture again")

    def _on_loop(self, call: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody is left to tell
            if self._loop is not None:
                self._loop.call_soon_threadsafe(call, *args)

    # --- on the event loop ---

    async def _own_metrics(self) -> Collector:
        return self.metrics.registry

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + TICK_S
            await asyncio.sleep(TICK_S)
            self.metrics.loop_lag(max(0.0, loop.time() - due))
            self.store.expire()
            self._end_lasting_stall()

    def _end_lasting_stall(self) -> None:
        age_s = self.batcher.running_s
        if self.failure is None and age_s > self.settings.stall_after_s + STALL_ENDS_AFTER_S:
            self._engine_died(StartupError(f"the engine hangs: one batch has been running for {age_s:.0f} s"))

    def _probe(self) -> None:
        if self._probing is None or self._probing.done():
            self._probing = asyncio.create_task(self._run_blank())

    def _check_device(self, served: ServedModel) -> None:
        """Ends the service where the GPU itself is broken: after a CUDA error that sticks only a new process helps."""
        if served.elsewhere or not served.engine.device.startswith("cuda"):
            return
        from model.engines import device  # loaded long since by the engine
        from model.errors import EngineError

        try:
            device.probe(device.pick_device(served.engine.device))
        except EngineError as error:
            log.critical("%s", error)
            self._engine_died(StartupError(str(error)))

    async def _run_blank(self) -> None:
        await asyncio.to_thread(self._check_device, self.loaded())
        side = self.loaded().native_size
        with contextlib.suppress(RequestError), self.batcher.reserve(1, self.settings.request_timeout_s) as places:
            await places.slots[0].run(np.zeros((3, side, side), np.uint8))
