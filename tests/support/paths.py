"""Where things of the checkout lie."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SAMPLES = ROOT / "service" / "samples"
MINI = ROOT / "tests" / "weights" / "freqmerge-mini-cifar100.safetensors"
"""A small model trained on CIFAR-100, 1.6 M parameters at 32 pixels: for tests that need real answers, and soon."""
