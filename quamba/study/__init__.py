"""Comparing observers: captured activations, verdicts, result logs, figures."""
