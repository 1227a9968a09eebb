"""A scheme for every layer, found by a search within a budget of bits."""
