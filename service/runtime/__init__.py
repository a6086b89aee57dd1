"""What lives as long as one app: the model, its engine thread, the worker threads."""
