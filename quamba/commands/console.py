"""The terminal that a command prints to."""

from rich import console


class Console(console.Console):
    """rich's console, where a reader that went away is an error that a command can go on after."""

    def on_broken_pipe(self) -> None:
        """Raises BrokenPipeError, where rich would end the program: outputs that are left are still to be written."""
        raise BrokenPipeError
