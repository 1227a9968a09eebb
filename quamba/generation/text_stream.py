"""Token ids to text while they come: whole characters only, and nothing of a stop string."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from ..errors import QuambaError

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a decoder gives for bytes that are no character, or not yet
MAX_UNFINISHED = 3  # a character of UTF-8 has up to 4 bytes; some decoders give U+FFFD for each of those so far
PROMPT_CONTEXT = 8  # tokens of the prompt that decide how the first new ones are written: a space before, or none


class IncrementalText:
    """Tokens in, text out. All pieces joined are what `tokenizer.decode` gives, less an unfinished last character.

    Bytes that begin a character are decoded as U+FFFD until the rest of it comes: up to three of them at the very end
    are held back, all else is settled. Text is decoded again only from the last point where nothing was unfinished.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int] = ()):
        self._tokenizer = tokenizer
        self._ids = list(prompt_ids[-PROMPT_CONTEXT:])  # some settled ones as context, then unsettled ones
        self._given = len(self._decode())  # characters of `_ids` that were given already
        self._settled = len(self._ids)

    def push(self, token_id: int) -> str:
        """The text that this token settles, often "" for one that is part of a character."""
        self._ids.append(token_id)
        text = self._decode()
        unfinished = min(MAX_UNFINISHED, len(text) - len(text.rstrip(UNFINISHED)))
        end = len(text) - unfinished
        piece = text[self._given : end]
        self._given = max(self._given, end)
        if piece and not unfinished:
            del self._ids[: self._settled]
            self._given, self._settled = len(self._decode()), len(self._ids)
        return piece

    def _decode(self) -> str:
        return self._tokenizer.decode(self._ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


class StopStrings:
    """Text in, text out up to the first stop string; what could be the beginning of one is held back."""

    def __init__(self, stops: Sequence[str] = ()):
        if "" in stops:
            raise QuambaError("a stop string is empty: it would stop before the first token")
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """The text that no stop string can claim any more; `found` says whether one was completed."""
        text = self._held + piece
        starts = [start for stop in self._stops if (start := text.find(stop)) >= 0]
        if starts:
            self.found, self._held = True, ""
            return text[: min(starts)]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """Return what was held back, where no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that `stop` begins with, less than the whole of it."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
