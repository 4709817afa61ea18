"""Search over params: candidates, which one is tried next, and the trials themselves."""
