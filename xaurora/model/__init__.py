"""Build and load Aurora, convert data to batches, and define heads, adapters and tuned models."""
