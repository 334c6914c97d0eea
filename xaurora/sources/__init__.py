"""Where a Dataset comes from: files, satellite rain, synthetic data, a prepared store."""
