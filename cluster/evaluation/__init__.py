"""Exact retrieval evaluation over code tables, baselines and the report."""
