"""The horizontal grid: points, patches, area weights, regions and regridding."""
