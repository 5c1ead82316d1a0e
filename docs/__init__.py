"""The documentation, and `python -m docs.options`, which writes its tables of options."""
