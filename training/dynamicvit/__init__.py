"""DynamicViT, the trained baseline: `python -m training.dynamicvit`. Only `training.budget` imports this room."""
