"""Index versions and shards: built, loaded, searched, merged; batch retrieval."""
