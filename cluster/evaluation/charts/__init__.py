"""The charts of an evaluation report, as SVG text."""
