"""How the rows of a head are cut into chunks, each of which may have AWQ input scales of its own."""

from ..ops.layout import OUTPUTS


def head_chunks(rows: int, chunks: int) -> list[range]:
    """[0, rows) in at most `chunks` ranges of one size, the last one shorter; each begins with a kernel's tile."""
    size = -(-rows // (chunks * OUTPUTS)) * OUTPUTS
    return [range(start, min(start + size, rows)) for start in range(0, rows, size)]
