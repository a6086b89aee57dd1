"""Run as a program: compares the inductor engine with eager, in a process whose signatures are not checked.

The shape checks of the test run are Python calls that torch.compile cannot trace.
"""

import sys
from functools import partial

import numpy as np
import torch

from model import load_checkpoint
from model.engines.choice import create_engine

path, sizes = sys.argv[1], [int(size) for size in sys.argv[2].split(",")]
torch._dynamo.config.recompile_limit = 2  # fewer than there are sizes: warming up has to raise it
compiled = create_engine(load_checkpoint(path), "inductor", "cpu", max_batch_size=max(sizes))
eager = create_engine(load_checkpoint(path), "eager", "cpu", max_batch_size=max(sizes))
compiled.warm_up()
side = eager.native_size
with torch.compiler.set_stance("fail_on_recompile"):
    for size in sizes:
        images = np.random.default_rng(size).integers(0, 256, (size, 3, side, side), dtype=np.uint8)
        found, expected = compiled.run(images), eager.run(images)
        np.testing.assert_allclose(found.logits, expected.logits, atol=1e-3)
        np.testing.assert_allclose(found.frequency_scores, expected.frequency_scores, atol=1e-4)
        assert np.array_equal(found.source_map, expected.source_map)
        sys.stdout.write(f"{size} agrees\n")

torch.compile = partial(torch.compile, backend="eager")  # traced as before, without the minutes of generating code
another = create_engine(load_checkpoint(path), "inductor", "cpu", max_batch_size=32)
another.warm_up()
sys.stdout.write("another engine warms up beside it\n")
