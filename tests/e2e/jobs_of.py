"""Job files of the scenarios."""

from __future__ import annotations


def clusters_of_proteins(run_id: str, n_init: int, output: str = "s3://demo/e2e") -> str:
    """Return a k-means job; about 3 s of two cores a start."""
    return f"""
pipeline: kmeans
input: s3://demo/data/bio
output: {output}
run_id: {run_id}
params:
  n_clusters: 8
  n_init: {n_init}
  drop: [EXAMPLE_ID, BLOCK_ID, target]
"""


def pictures(run_id: str, epochs: int = 1, hardware: str = "auto") -> str:
    """Return a training job; about 30 s of two cores an epoch."""
    return f"""
pipeline: image_classification
input: s3://demo/data/cifar10
output: s3://demo/e2e
run_id: {run_id}
params:
  epochs: {epochs}
  hardware: {hardware}
"""


def incomes(run_id: str, epochs: int, world_size: int | None = None) -> str:
    """Return a training job on a table, on CPUs; 76 steps of 512 rows an epoch."""
    return f"""
pipeline: neural_network
input: s3://demo/data/adult
output: s3://demo/e2e
run_id: {run_id}
params:
  target: income
  batch_size: 512
  hardware: cpu
  world_size: {"null" if world_size is None else world_size}
  epochs: {epochs}
"""
