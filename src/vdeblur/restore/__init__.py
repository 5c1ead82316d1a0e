"""Frames restored by a network on a device."""
