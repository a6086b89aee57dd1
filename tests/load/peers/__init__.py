"""Other servers around the same decoding and the same engine of known cost; not imported by the service."""
