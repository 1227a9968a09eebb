"""Speed and memory, side by side in one interleaved run: ours, transformers, llama.cpp, and the machine's floors.

`make bench` runs it, `python -m benchmarks.speed --help` lists the options. Every system is a process of its own that
the driver asks over a pipe; between questions it sleeps.
"""
