"""The encode job: tar shards into code tables, resumable."""
