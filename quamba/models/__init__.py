"""What a transformers model is made of, and what must be true of it before it is worked on."""
