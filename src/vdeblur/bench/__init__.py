"""Benchmarks: data sets, the papers' protocols, metrics, and models measured by them."""
