"""Measures of restored video: similarity to the sharp frames, sharpness, steadiness."""
