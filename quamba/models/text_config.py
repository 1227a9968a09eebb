"""Where a model's config says what its text decoder is like."""

from typing import Protocol

from transformers import PreTrainedConfig


class HasConfig(Protocol):
    """A model, or what stands for one."""

    config: PreTrainedConfig


def text_config(model: HasConfig) -> PreTrainedConfig:
    """Return the config of a model's text decoder: a part of the whole config where the model reads images too."""
    return model.config.get_text_config(decoder=True)
