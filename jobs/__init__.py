"""What runs in Daskyard's pods and on a laptop: pipelines, estimators, the trainer and the `daskyard` command."""

__version__ = "0.1.0"
