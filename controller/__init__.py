"""What runs beside the Dask operator: jobs as small objects, and worker groups that scale by their own demand."""
