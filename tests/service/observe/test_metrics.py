"""What the metrics say when the GPU does not answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from service.runtime.service import Service
from service.settings import Settings
from tests.support.doubles import FakeEngine, loader, served


def families(service: Service) -> dict[str, list[Any]]:
    return {family.name: family.samples for family in service.metrics.registry.collect()}


def test_a_broken_gpu_costs_its_own_sample_and_no_other_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: str) -> tuple[int, int]:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    engine = FakeEngine()
    engine.device = "cuda:0"
    service = Service(Settings(), loader(engine))
    service.engine.model = served(engine)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2, 5))
    assert [sample.value for sample in families(service)["freqmerge_gpu_memory_bytes"]] == [3, 2]
    monkeypatch.setattr(torch.cuda, "mem_get_info", broken)
    found = families(service)
    assert found["freqmerge_gpu_memory_bytes"] == []
    assert len(found["freqmerge_ready"]) == 1
