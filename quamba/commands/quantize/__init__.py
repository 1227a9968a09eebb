"""The options of a quantization, and what they mean for a checkpoint."""
