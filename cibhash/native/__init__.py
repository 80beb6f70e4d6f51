"""Compiled C code for what Python is too slow at, where it could be compiled; whoever calls it has another way.

The sources lie beside this file. Knows nothing of tensors, files and what its results are for.
"""
