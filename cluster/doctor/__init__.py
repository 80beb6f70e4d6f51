"""Checks tar shards before GPU time is spent, and writes cleaned copies."""
