"""Comparing scale strategies: captured activations, verdicts, result logs, figures."""
