"""Run as a program, for its shape checks cannot be traced: the whole way of the `tensorrt` engine on the stand-in.

Arguments: a checkpoint, and the folder where engines are kept. Prints what became of it as JSON lines; leaves the
engine in the folder, and the exported graph beside it for tests that must not trace.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from model import load_checkpoint
from model.engines.choice import create_engine
from model.engines.classifier import classifier_of
from model.engines.program import exported
from tests.support.fake_cuda import fake_cuda
from tests.support.standin_tensorrt import install

MOST = 12

path, folder = Path(sys.argv[1]), Path(sys.argv[2])
with pytest.MonkeyPatch.context() as patch:
    faults = install(patch)
    with fake_cuda(patch, "GPU A", "GPU B"):
        for start in ("built", "kept"):
            engine = create_engine(load_checkpoint(path), "auto", "cuda:1", MOST, precision="fp32", cache=folder)
            eager = create_engine(load_checkpoint(path), "eager", "cuda:1", MOST, precision="fp32")
            faults.launches.clear()
            engine.warm_up()
            warmed = list(faults.launches)
            differences = []
            for size in (1, 2, 8, 9, 12):
                shape = (size, 3, engine.native_size, engine.native_size)
                images = np.random.default_rng(size).integers(0, 256, shape, dtype=np.uint8)
                pairs = zip(engine.run(images), eager.run(images), strict=True)
                differences.append(max(float(np.abs(found - wanted).max()) for found, wanted in pairs))
            told = {
                "start": start,
                "precision": engine.precision,
                "kind": engine.kind,
                "device": engine.device,
                "reason": engine.reason,
                "builds": [{**build, "device": str(build["device"])} for build in faults.builds],
                "deserialised_on": faults.devices[-1],
                "warmed": warmed,
                "differences": differences,
            }
            sys.stdout.write(json.dumps(told) + "\n")
torch.export.save(exported(classifier_of(load_checkpoint(path)), MOST), folder / "program.pt2")
