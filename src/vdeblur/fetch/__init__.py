"""Downloads: complete, verified and resumable."""
