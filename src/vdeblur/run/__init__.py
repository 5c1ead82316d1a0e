"""One file or many, from start to output."""
