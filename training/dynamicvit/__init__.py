"""DynamicViT, the trained baseline: `python -m training.dynamicvit`. A closed room: only its command imports it."""
