"""Measurements of hfflows beside other tools, on a real S3 server; see docs/benchmarks.md."""
