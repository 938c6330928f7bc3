"""Measurements that go with the source, each a command: `python -m benchmarks.<name>`."""
