"""Models side by side: their perplexity, their tensors, what they predict."""
