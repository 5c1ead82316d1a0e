"""Measures of restored video: similarity to the truth, sharpness, steadiness."""
