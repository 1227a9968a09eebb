"""Text as tokens: where it comes from, how it is cut into windows, what is kept of it."""
