"""Vision Transformers that merge: our own around a timm backbone, and any timm model as it stands."""
