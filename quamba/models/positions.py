"""How many tokens a model has positions for: rotary ones are computed beyond that without a word, and mean nothing."""

from transformers import PreTrainedConfig

from ..errors import QuambaError

UNLIMITED = (None, "nope", "alibi")  # kinds of positions, where a config names one, that any length has


def max_positions(config: PreTrainedConfig) -> int | None:
    """The longest sequence that a model was made for, as its config (of its text part) says, scaled positions
    included; None where nothing limits it: Mamba, ALiBi, hybrids whose attention has no positions."""
    text = config.get_text_config(decoder=True)
    if getattr(text, "alibi", False) or getattr(text, "position_embedding_type", "rope") in UNLIMITED:
        return None
    positions = getattr(text, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    return max(positions, _scaled(getattr(text, "rope_parameters", None), positions))


def _scaled(rope: object, positions: int) -> int:
    """The positions that a scaled rotary embedding reaches (YaRN, dynamic scaling, ...); 0 for one that is not."""
    if not isinstance(rope, dict) or not isinstance(factor := rope.get("factor"), int | float):
        return 0
    return int(factor * (rope.get("original_max_position_embeddings") or positions))


def check_positions(config: PreTrainedConfig, length: int, option: str) -> None:
    """Raises QuambaError where sequences of `length` tokens are longer than a model has positions.

    `option`: what the length was given by, for the message.
    """
    positions = max_positions(config)
    if positions is not None and length > positions:
        raise QuambaError(
            f"{option} is {length}, and this model ({config.model_type}) has positions for {positions} tokens "
            f"(max_position_embeddings in its config): give at most {positions}"
        )
