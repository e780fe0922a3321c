"""TiDAR, arXiv 2511.08923."""
