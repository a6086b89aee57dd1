"""Engines: run one batch of uint8 images on one device. `model.engines.engine` chooses."""
