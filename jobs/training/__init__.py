"""The data-parallel PyTorch trainer on Dask workers, and the shards that it reads."""
