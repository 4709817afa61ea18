"""The pipelines, one file each: load, prepare, fit, evaluate, write."""
