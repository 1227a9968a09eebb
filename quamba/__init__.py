"""quamba."""
