"""The families that this package knows, a file each: `ARCHITECTURE` of one with Mamba blocks, `NORM_READERS` of others.

A new file is found by itself.
"""
