"""DynamicViT, the trained baseline: `python -m training.dynamicvit`. A closed room: `training.budget` alone imports it."""
