"""Scripts that measure; their results are in README.md."""
