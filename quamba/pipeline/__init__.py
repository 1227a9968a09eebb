"""A quantization from end to end: transforms, weights, calibration, conversion, in that order."""
