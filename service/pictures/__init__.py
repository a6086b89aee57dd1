"""Pictures on worker threads: decoding what a stranger sent, drawing heatmaps. Free of HTTP."""
