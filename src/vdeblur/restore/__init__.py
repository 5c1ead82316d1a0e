"""Frames become restored frames on a device."""
