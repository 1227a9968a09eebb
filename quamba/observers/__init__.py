"""Observers: each watches one tap and says by which scale its values are quantized."""
