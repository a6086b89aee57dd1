"""Recent images, so that their heatmaps can be asked for: in memory, or in a Redis that processes share."""
