"""Images into tar shards: sources, keys, splits, shards."""
