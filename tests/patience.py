"""How long a test waits for what may hang. Nothing is judged by it: a slow machine must never fail a test."""

HANG_S = 900.0
