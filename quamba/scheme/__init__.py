"""What is quantized to what, as data."""
