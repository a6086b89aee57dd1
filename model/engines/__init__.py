"""Engines: run one batch of uint8 images on one device. `model.engines.choice.create_engine` makes one."""
