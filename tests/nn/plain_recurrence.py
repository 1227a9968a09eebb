"""Mamba and Mamba2 in the plainest form: one token after the other, each state kept, every formula as in the papers.

Dims: B batch, H hidden, D d_inner, S heads, P head_dim, G SSD groups, N d_state, R dt_rank, K conv width, X channels of
the convolution. A token's tensors have no length.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel


def rms_norm(x: Tensor, weight: Tensor, eps: float, groups: int = 1) -> Tensor:
    """Over each of `groups` parts of the last dimension."""
    parts = x.unflatten(-1, (groups, -1))
    return (parts * torch.rsqrt(parts.square().mean(-1, keepdim=True) + eps)).flatten(-2) * weight


class PlainBlock:
    """A block's mixer with the states of its sequences. `mixer`: transformers' or this package's float one."""

    def __init__(self, mixer, config, batch: int):
        self.mixer, self.config = mixer, config
        self.window = torch.zeros(batch, *mixer.conv1d.weight.squeeze(1).shape)  # the convolution's last K inputs

    def convolve(self, x: Tensor) -> Tensor:
        """A token's channels [B, X] -> conv + SiLU [B, X]."""
        conv = self.mixer.conv1d
        self.window = torch.cat([self.window[..., 1:], x[..., None]], dim=-1)  # [B, X, K]
        y = (self.window * conv.weight.squeeze(1)).sum(-1)
        return F.silu(y if conv.bias is None else y + conv.bias)


class PlainMamba1(PlainBlock):
    """Mamba, arXiv 2312.00752, algorithm 2; Falcon-Mamba, arXiv 2410.05355, with norms of dt, B and C."""

    def __init__(self, mixer, config, batch: int):
        super().__init__(mixer, config, batch)
        self.state = torch.zeros(batch, *mixer.A_log.shape)  # [B, D, N]

    def step(self, u: Tensor) -> Tensor:
        """[B, H] -> [B, H]."""
        mixer, N = self.mixer, self.config.state_size
        x, z = mixer.in_proj(u).chunk(2, dim=-1)
        x = self.convolve(x)  # [B, D]
        dt, B, C = mixer.x_proj(x).split([mixer.dt_proj.in_features, N, N], dim=-1)
        if self.config.model_type == "falcon_mamba":
            dt, B, C = (rms_norm(part, torch.ones(()), self.config.mixer_rms_eps) for part in (dt, B, C))
        dt = F.softplus(mixer.dt_proj(dt))  # [B, D]
        decay = torch.exp(dt[..., None] * -torch.exp(mixer.A_log))  # [B, D, N]
        self.state = decay * self.state + (dt * x)[..., None] * B[:, None]
        y = (self.state * C[:, None]).sum(-1) + mixer.D * x
        return mixer.out_proj(y * F.silu(z))


class PlainMamba2(PlainBlock):
    """Mamba2, arXiv 2405.21060, section 7."""

    def __init__(self, mixer, config, batch: int):
        super().__init__(mixer, config, batch)
        self.state = torch.zeros(batch, config.num_heads, config.head_dim, config.state_size)  # [B, S, P, N]

    def step(self, u: Tensor) -> Tensor:
        """[B, H] -> [B, H]."""
        mixer, config = self.mixer, self.config
        S, P, G, N = config.num_heads, config.head_dim, config.n_groups, config.state_size
        z, xBC, dt = mixer.in_proj(u).split([S * P, S * P + 2 * G * N, S], dim=-1)
        x, B, C = self.convolve(xBC).split([S * P, G * N, G * N], dim=-1)
        dt = F.softplus(dt + mixer.dt_bias).clamp(*config.time_step_limit)  # [B, S]
        decay = torch.exp(dt * -torch.exp(mixer.A_log))  # [B, S]
        y = torch.zeros(len(u), S, P)
        for head in range(S):
            group = slice(head // (S // G) * N, (head // (S // G) + 1) * N)
            channels = x[:, head * P : (head + 1) * P]  # [B, P]
            added = dt[:, head, None, None] * channels[..., None] * B[:, None, group]
            self.state[:, head] = decay[:, head, None, None] * self.state[:, head] + added
            y[:, head] = (self.state[:, head] * C[:, None, group]).sum(-1) + mixer.D[head] * channels
        y = rms_norm(y.flatten(1) * F.silu(z), mixer.norm.weight, config.layer_norm_epsilon, G)
        return mixer.out_proj(y)


BLOCKS = {"mamba": PlainMamba1, "falcon_mamba": PlainMamba1, "mamba2": PlainMamba2}


@torch.inference_mode()
def plain_logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """What a float32 model says after every token: int64 [B, L] -> [B, L, V]."""
    config, backbone = model.config, model.backbone
    blocks = [BLOCKS[config.model_type](layer.mixer, config, len(tokens)) for layer in backbone.layers]
    logits = []
    for ids in tokens.unbind(1):
        hidden = backbone.embeddings(ids)  # [B, H]
        for layer, block in zip(backbone.layers, blocks, strict=True):
            hidden = hidden + block.step(rms_norm(hidden, layer.norm.weight, config.layer_norm_epsilon))
        logits.append(model.lm_head(rms_norm(hidden, backbone.norm_f.weight, config.layer_norm_epsilon)))
    return torch.stack(logits, dim=1)
