"""Token by token through a model: the decoder, the choice of tokens, text as it comes."""
