"""The train job: workers, views, progress, checkpoints, the encoder at the end."""
