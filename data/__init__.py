"""Where images come from, how shards are written, verified and read. Knows nothing of models."""
