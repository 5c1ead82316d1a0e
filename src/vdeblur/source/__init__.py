"""Video files and picture folders, read as frames and packets."""
