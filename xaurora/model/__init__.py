"""Aurora: building and loading it, batches, heads, adapters, and the tuned artefact."""
