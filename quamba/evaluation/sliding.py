"""Perplexity of sliding windows: every token is predicted once, most of them from a long context.

Windows that do not overlap give the first tokens of each window hardly any context, which overstates the perplexity of
a running text. Here windows of `max_length` tokens begin every `stride` tokens; what an earlier window predicted is
context in a later one, and is not counted again.
"""

from collections.abc import Sequence

from torch import Tensor

from ..errors import QuambaError
from ..text.data import token_stream
from .perplexity import PerplexityResult, Window, window_perplexity

DOCUMENT_BREAK = "\n\n"


def joined_stream(documents: Sequence[str], tokenizer) -> Tensor:
    """int64 [tokens]: the documents as one running text, blank lines between them, behind a single bos (or eos) token.

    A tokenizer that has neither token gives the text alone.
    """
    return token_stream([DOCUMENT_BREAK.join(documents)], tokenizer)


def sliding_windows(stream: Tensor, max_length: int, stride: int) -> list[Window]:
    """Windows of a stream int64 [tokens]: (tokens [n], predicted_from), n <= max_length, one every `stride` tokens.

    Where stride < max_length every token but the stream's first is predicted exactly once: a window predicts what the
    one before it did not reach. Where they are equal the windows do not overlap and nothing stands before the first
    token of a window, which is then not predicted: the windows of `data.evaluation_windows`. A last window that would
    predict nothing is left out.
    Raises QuambaError for a stride below 1 or above `max_length`, which would skip tokens, and for too short a stream.
    """
    if max_length < 2:
        raise QuambaError(
            f"max_length is {max_length}: a window needs two tokens or more, one to predict the other from"
        )
    if not 1 <= stride <= max_length:
        raise QuambaError(
            f"stride is {stride}: give 1 to max_length, which is {max_length}; a longer stride would skip tokens"
        )
    if len(stream) < 2:
        raise QuambaError("the text is too short to measure perplexity on: it has no two tokens")
    windows, predicted = [], 1  # the stream's first token has nothing before it
    for start in range(0, len(stream), stride):
        tokens = stream[start : start + max_length]
        predicted_from = max(1, predicted - start)
        if predicted_from < len(tokens):
            windows.append(Window(tokens, predicted_from))
        predicted = start + len(tokens)
        if predicted == len(stream):
            break
    return windows


def sliding_perplexity(
    model,
    windows: Sequence[Window],
    batch_size: int = 8,
    max_windows: int | None = None,
    progress: bool = True,
    description: str = "perplexity",
) -> PerplexityResult:
    """exp of the mean nll of the tokens that the windows predict; `max_windows`: only the first ones.

    `window_nll` is the mean over the predicted tokens of a window, `window_tokens` their number. Raises QuambaError
    for no window.
    """
    return window_perplexity(model, windows[:max_windows], batch_size, progress, description)
