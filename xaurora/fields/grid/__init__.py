"""The horizontal grid: its points, patches, area weights, regions and regridding."""
