"""Data sets: a name or a folder becomes pairs of pictures."""
