"""Near-duplicates of code tables: an exact self-join within a radius, groups, leakage between splits, the report."""
