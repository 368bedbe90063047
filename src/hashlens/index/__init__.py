"""The index on disk: store, records, coarse and fine search."""
