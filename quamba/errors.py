"""The one exception that means "the user can fix this"."""


class QuambaError(ValueError):
    """A mistake in what the user gave us: the message names the value and what to do. `main.py` prints it alone."""
