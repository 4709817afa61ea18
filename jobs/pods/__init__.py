"""What runs in the pods of a cluster besides the job: a worker's farewell, and a scheduler that knows worker groups."""
