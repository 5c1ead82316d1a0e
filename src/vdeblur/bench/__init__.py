"""Measure how good and how fast models are, and report it."""
