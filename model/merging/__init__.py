"""The method: frequency score, matching, merging, schedule. Pure functions of tensors that know no ViT."""
