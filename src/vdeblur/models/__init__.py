"""Models: from a name to a network with verified weights."""
