"""Long runs against a real server process: `make soak`."""
