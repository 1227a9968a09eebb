"""Losses and sizes of three layers, of which layer 1 suffers least and layer 2 most."""

LOSSES = {"w8a8": [0.01, 0.01, 0.01], "w4a8": [0.2, 0.1, 0.5]}
SIZES = {"w8a8": [1000, 1000, 1000], "w4a8": [500, 500, 500]}
WEIGHTS = 3000
