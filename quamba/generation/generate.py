"""Text from a prompt, streamed: one prefill, then one decoder step and one choice a token."""

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import QuambaError
from ..models.original import in_eval_mode
from ..models.positions import check_positions
from .decoder import Decoder
from .sampling import SamplingOptions, choose
from .text_stream import IncrementalText, StopStrings


@dataclass(frozen=True)
class Completion:
    """Hold what a run of `generate_text` did; the times leave out what its caller did with the text meanwhile."""

    prompt_tokens: int
    token_ids: tuple[int, ...]  # the new ones, an end-of-sequence token included
    reason: str  # "eos", "stop" (a stop string) or "length" (max_new_tokens)
    prefill_seconds: float  # to the first new token
    decode_seconds: float  # for all the others

    @property
    def tokens(self) -> int:
        """New tokens."""
        return len(self.token_ids)

    @property
    def prefill_rate(self) -> float:
        """Tokens of the prompt a second."""
        return self.prompt_tokens / self.prefill_seconds

    @property
    def decode_rate(self) -> float | None:
        """New tokens a second after the first; None where there was only one."""
        return (self.tokens - 1) / self.decode_seconds if self.tokens > 1 else None


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The prompt's token ids; for a prompt without any, the tokenizer's token that begins or ends a text.

    Raises QuambaError for a prompt that is not valid Unicode, and for an empty one where there is no such token.
    """
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise QuambaError(f"the prompt is not valid UTF-8: {prompt[error.start : error.end]!r} in it") from error
    ids = tokenizer(prompt)["input_ids"]
    if not ids:
        starts = (tokenizer.bos_token_id, tokenizer.eos_token_id)
        ids = [token_id for token_id in starts if token_id is not None][:1]
    if not ids:
        raise QuambaError("the prompt is empty and this tokenizer has no token that begins a text: give a prompt")
    return ids


def end_of_sequence_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end a text: as the model's generation settings, its config or else the tokenizer say."""
    for settings in (model.generation_config, model.config, tokenizer):
        ids = settings.eos_token_id
        if ids is not None:
            return frozenset([ids] if isinstance(ids, int) else ids)
    return frozenset()


def generate_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    max_new_tokens: int = 128,
    sampling: SamplingOptions | None = None,
    stop: Sequence[str] = (),
) -> Generator[str, None, Completion]:
    """Yields the text that follows `prompt` piece by piece and returns what was done: `done = yield from ...`.

    The pieces are whole characters, without special tokens and without a stop string. `sampling` None: greedily.
    A float model's mixers are replaced, see `Decoder`. Raises QuambaError for a prompt, a stop string or a number that
    cannot be used, for more tokens than the model has positions, and for a model that has no decoder; from the run
    itself where logits are no numbers.
    """
    if max_new_tokens < 1:
        raise QuambaError(f"max_new_tokens {max_new_tokens}: at least 1")
    sampling = sampling or SamplingOptions()
    stops, decoder = StopStrings(stop), Decoder(model)
    prompt_ids = encode_prompt(tokenizer, prompt)
    length = len(prompt_ids) + max_new_tokens - 1  # the last new token is not read
    check_positions(model.config, length, "the prompt's length plus max_new_tokens (--max_new_tokens), less one,")
    end_ids = end_of_sequence_ids(model, tokenizer)
    text = IncrementalText(tokenizer, prompt_ids)
    return _without_dropout(model, _run(decoder, prompt_ids, end_ids, max_new_tokens, sampling, text, stops))


def _without_dropout(model: PreTrainedModel, run: Generator[str, None, Completion]) -> Generator[str, None, Completion]:
    """The run of a model in eval mode, which has its own mode again when it ends."""
    with in_eval_mode(model):
        return (yield from run)


def _run(
    decoder: Decoder,
    prompt_ids: list[int],
    end_ids: frozenset[int],
    max_new_tokens: int,
    sampling: SamplingOptions,
    text: IncrementalText,
    stops: StopStrings,
) -> Generator[str, None, Completion]:
    """The loop of `generate_text`, everything checked."""
    generator, length = sampling.generator(), len(prompt_ids)
    ids = torch.empty(1, length + max_new_tokens, dtype=torch.int64)  # the prompt and what follows, as it comes
    ids[0, :length] = torch.tensor(prompt_ids)
    reason, seconds = "length", []
    for end in range(length, length + max_new_tokens):
        start = time.perf_counter()
        logits = decoder.prefill(ids[:, :length]) if end == length else decoder.step(ids[:, end - 1])
        ids[:, end] = choose(logits, ids[:, :end], sampling, generator)
        token_id = int(ids[0, end])
        seconds.append(time.perf_counter() - start)
        if token_id in end_ids:
            reason = "eos"
            break
        if piece := stops.push(text.push(token_id)):
            yield piece
        if stops.found:
            reason = "stop"
            break
    if piece := stops.finish():
        yield piece
    new_ids = tuple(ids[0, length : length + len(seconds)].tolist())
    return Completion(length, new_ids, reason, seconds[0], sum(seconds[1:]))
