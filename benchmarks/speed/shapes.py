"""The sizes of the Mamba models that are measured, and the cases: which batches and prompts at which shape.

Dims: B batch, L prompt tokens, H hidden, D d_inner, N d_state, R dt_rank, K conv width, V vocabulary; Mamba2: S heads,
P head_dim, G n_groups.
"""

from dataclasses import dataclass

VOCAB = 50280
D_STATE = 16
MAMBA2_D_STATE, MAMBA2_HEAD_DIM, MAMBA2_GROUPS = 128, 64, 1
CONV_WIDTH = 4
NORM_EPS = 1e-5


@dataclass(frozen=True)
class Shape:
    """A Mamba of `layers` blocks; `max_tokens` bounds B x L of a case, so that a default run ends.

    `model_type`: mamba or mamba2, as config.json names it.
    """

    name: str
    hidden: int
    layers: int
    max_tokens: int
    decode_steps: int
    model_type: str = "mamba"

    @property
    def d_inner(self) -> int:
        return 2 * self.hidden

    @property
    def dt_rank(self) -> int:
        return self.hidden // 16

    @property
    def heads(self) -> int:
        return self.d_inner // MAMBA2_HEAD_DIM

    @property
    def block_macs(self) -> int:
        """Multiply-adds of the matrix products of every block, for one token."""
        in_proj, out_proj = self.hidden * 2 * self.d_inner, self.d_inner * self.hidden
        if self.model_type == "mamba2":  # in_proj makes B, C and dt too
            return self.layers * (in_proj + self.hidden * (2 * MAMBA2_GROUPS * MAMBA2_D_STATE + self.heads) + out_proj)
        x_proj, dt_proj = self.d_inner * (self.dt_rank + 2 * D_STATE), self.dt_rank * self.d_inner
        return self.layers * (in_proj + x_proj + dt_proj + out_proj)

    @property
    def head_macs(self) -> int:
        """Multiply-adds of the head for one position."""
        return VOCAB * self.hidden

    @property
    def parameters(self) -> int:
        """Weights of the matrices, the tied table once."""
        return self.block_macs + self.head_macs


MEASURED = {
    shape.name: shape
    for shape in (
        Shape("130m", 768, 24, max_tokens=2048, decode_steps=32),
        Shape("370m", 1024, 48, max_tokens=2048, decode_steps=16),
        Shape("790m", 1536, 48, max_tokens=1024, decode_steps=16),
        Shape("1.4b", 2048, 48, max_tokens=512, decode_steps=16),
        Shape("mamba2-130m", 768, 24, max_tokens=2048, decode_steps=32, model_type="mamba2"),
    )
}
# as small as every system takes them: what --check compares, in seconds
CHECKED = {
    shape.name: shape
    for shape in (
        Shape("tiny", 128, 2, max_tokens=2048, decode_steps=4),
        Shape("mamba2-tiny", 128, 2, max_tokens=2048, decode_steps=4, model_type="mamba2"),
    )
}
SHAPES = MEASURED | CHECKED


@dataclass(frozen=True, order=True)
class Case:
    """`batch` prompts of `prompt` random tokens each at a shape."""

    shape: str
    batch: int
    prompt: int


def cases_of(shape: Shape, batches: list[int], prompts: list[int], full: bool = False) -> list[Case]:
    """The cases of a shape, shortest first; without `full` only those of at most `max_tokens` tokens."""
    wanted = [Case(shape.name, batch, prompt) for batch in sorted(batches) for prompt in sorted(prompts)]
    return [case for case in wanted if full or case.batch * case.prompt <= shape.max_tokens]
