"""Scripts that measure speed and memory; README.md has their results."""
