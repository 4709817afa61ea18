"""Estimators under scikit-learn's contract: arrays in, arrays out; no storage, no command line."""
