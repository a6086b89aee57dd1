"""What the containers promise, on a real Docker: `python -m tests.compose`."""
