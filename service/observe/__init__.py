"""What operators see: metrics, logs, stage times, traces."""
