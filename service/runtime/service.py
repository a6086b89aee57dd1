"""The parts of one app, made, handed to each other, opened and closed here; each does its work without this file."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import numpy as np
from prometheus_client.registry import Collector

from model.errors import EngineError
from service.batching.batcher import Batcher
from service.batching.waiting import Limits
from service.errors import NotReady, RequestError, StartupError
from service.observe.metrics import Metrics
from service.pictures.decode_pool import DecodeWorkers
from service.pictures.memory_budget import ByteBudget
from service.runtime import card, readiness
from service.runtime.body_budget import BodyBudget
from service.runtime.engine_thread import EngineThread
from service.runtime.loading import ModelLoader
from service.runtime.pool import WorkerPool
from service.runtime.served import ServedModel
from service.settings import Settings
from service.store.choice import open_store

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
        self.engine = EngineThread(partial(load, settings), self.batcher, self._became_warm)
        self.pool = WorkerPool(settings.decode_threads)
        self.costly_pool = WorkerPool(settings.decode_workers, "freqmerge-costly")
        self.workers = DecodeWorkers(settings.decode_workers, settings.decode_cpu_s, 2 * settings.max_decoding_bytes)
        self.budget = ByteBudget(settings.max_decoding_bytes, on_wait=self.metrics.memory_wait)
        self.bodies = BodyBudget(settings.max_body_bytes)
        self.store = open_store(settings, self.metrics.store_failed)
        self.labels: list[dict[str, Any]] = []
        self.leaving = False
        """Whether the shutdown was announced."""
        self.gather: Callable[[], Awaitable[Collector]] = self._own_metrics
        """What GET /metrics tells; a host with several replicas sets it to one that asks them all."""
        self._probing: asyncio.Task[None] | None = None
        self._ticker: asyncio.Task[None] | None = None
        self.metrics.watch(
            self.batcher,
            self.store,
            workers=self.workers,
            decode_wait_s=lambda: self.decode_wait_s,
            decoding_bytes=lambda: self.budget.held,
            memory_waiting=lambda: self.budget.waiting,
            body_bytes=lambda: self.bodies.held,
            ready=lambda: self.ready,
            device=self._own_device,
        )

    # --- life ---

    async def open(self) -> None:
        """Starts the engine thread and returns at once."""
        self._ticker = asyncio.create_task(self._tick())
        self.engine.start()

    async def warm(self) -> None:
        """Returns when the engine is warm; raises the `StartupError` that kept it from that."""
        await self.engine.warm()

    def announce_shutdown(self) -> None:
        """Not ready from now on, though requests are still served; safe in a signal handler."""
        self.leaving = True

    def refuse_new(self) -> None:
        """New pictures are refused; those under way go on."""
        self.leaving = True
        self.batcher.refuse_new()

    async def close(self, grace_s: float = 5.0) -> None:
        """Finishes what is under way, for `grace_s` at most, and ends the threads."""
        self.refuse_new()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self.batcher.drained()
        self.batcher.stop()
        await self.engine.join(grace_s)
        self.pool.close()
        self.costly_pool.close()
        self.workers.close()
        for task in (self._ticker, self._probing):
            if task is not None:
                task.cancel()
        await self.store.close()

    # --- readiness ---

    @property
    def failure(self) -> StartupError | None:
        """Why the service will never be ready (again); its host should end the process."""
        return self.engine.failure

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
        if self.engine.model is None:
            raise self._obstacle() or NotReady("The model is not loaded.")
        return self.engine.model

    def _obstacle(self) -> RequestError | None:
        engine, batcher = self.engine, self.batcher
        return readiness.obstacle(
            readiness.Facts(
                dead=engine.failure is not None,
                leaving=self.leaving,
                loaded=engine.model is not None,
                failing=batcher.failing,
                running_s=batcher.running_s,
                stall_after_s=self.settings.stall_after_s,
                decode_wait_s=self.decode_wait_s,
                decode_stall_after_s=self.settings.decode_stall_after_s,
            )
        )

    @property
    def decode_wait_s(self) -> float:
        """How long a picture has waited for a thread, a process or memory, the longest of all; 0 if none waits."""
        return max(self.pool.waited_s, self.costly_pool.waited_s, self.budget.waited_s)

    def _own_device(self) -> str | None:
        """The device of an engine in this process."""
        served = self.engine.model
        return None if served is None or served.elsewhere else served.engine.device

    # --- on the event loop ---

    def _became_warm(self, served: ServedModel) -> None:
        self.labels = card.labels(served)
        info = card.model_info(served)
        self.metrics.set_model(info, served.manifest.class_names)
        self.store.serve(served.fingerprint)
        log.info("ready", extra={"fields": {**info, "reason": served.engine.reason}})

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
        if self.engine.failure is None and age_s > self.settings.stall_after_s + STALL_ENDS_AFTER_S:
            self.engine.give_up(StartupError(f"the engine hangs: one batch has been running for {age_s:.0f} s"))

    def _probe(self) -> None:
        if self._probing is None or self._probing.done():
            self._probing = asyncio.create_task(self._run_blank())

    def _check_device(self, served: ServedModel) -> None:
        """Ends the service where the GPU itself is broken: after a CUDA error that sticks only a new process helps."""
        if served.elsewhere or not served.engine.device.startswith("cuda"):
            return
        from model.engines import device  # needs torch, which the engine has loaded long since

        try:
            device.probe(device.pick_device(served.engine.device))
        except EngineError as error:
            log.critical("%s", error)
            self.engine.give_up(StartupError(str(error)))

    async def _run_blank(self) -> None:
        await asyncio.to_thread(self._check_device, self.loaded())
        side = self.loaded().native_size
        with contextlib.suppress(RequestError), self.batcher.reserve(1, self.settings.request_timeout_s) as places:
            self.batcher.put(places.slots[0], np.zeros((3, side, side), np.uint8))
            await places.slots[0].answer
