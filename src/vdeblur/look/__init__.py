"""Show and examine videos: comparisons, pages, probes."""
