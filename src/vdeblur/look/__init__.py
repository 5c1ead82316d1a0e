"""Videos shown and measured: comparisons, pages, probes."""
