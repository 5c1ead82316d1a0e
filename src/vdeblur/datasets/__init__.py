"""Data sets: from a name or a folder to pairs of pictures."""
