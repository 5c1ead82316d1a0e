"""How good and how fast models are: data sets, protocols, metrics, baselines, speed, and their reports."""
