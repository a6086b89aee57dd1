"""One training run: what it trains, where it stands, its processes and its files."""
