"""The families of models whose blocks are quantized, and our modules in the slots of a model."""
