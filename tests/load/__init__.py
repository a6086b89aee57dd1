"""Load tests of the service, alone and beside other servers; see docs/studies/benchmarks.md."""
