"""Training: clips with a known truth, losses, and the loop."""
