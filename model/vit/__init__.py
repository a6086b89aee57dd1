"""Vision Transformers that merge: our own around a timm backbone, and timm models as they stand."""
