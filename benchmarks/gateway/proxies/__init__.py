"""Proxies to compare with; each module makes an `app` in front of the upstream that BENCHMARK_UPSTREAM names."""
