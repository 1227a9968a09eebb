"""Runs text through a float model and turns what observers saw at its taps into scales."""
