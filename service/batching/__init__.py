"""Admission, queue and batches of one engine; the contract stands in `service.batching.batcher`."""
