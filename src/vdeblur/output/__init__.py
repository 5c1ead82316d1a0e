"""Frames and packets written to files."""
