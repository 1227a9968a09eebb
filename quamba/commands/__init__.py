"""The commands of `python -m quamba`: a module each, with NAME, HELP, EXAMPLES, `add_arguments` and `run`."""
