"""The sections of an evaluation report, as HTML text."""
