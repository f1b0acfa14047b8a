"""Kimi-VL in PyTorch, small enough to train on a CPU: the network of the demonstration model.

Owns the arithmetic of training. Parameters carry the names of the Hugging Face checkpoint, except that the experts of a
layer are stacked (`checkpoint_tensors` takes them apart). Knows neither pictures, texts nor files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class VisionConfig:
    """Fields of vision_config by their own names."""

    hidden_size: int = 192
    intermediate_size: int = 768
    num_hidden_layers: int = 5
    num_attention_heads: int = 4
    init_pos_emb_height: int = 16
    init_pos_emb_width: int = 16
    patch_size: int = 14


@dataclass(frozen=True)
class TextConfig:
    """Fields of text_config by their own names. Rows of 256 let every block format be used."""

    vocab_size: int = 768
    hidden_size: int = 256
    intermediate_size: int = 768
    moe_intermediate_size: int = 128
    num_hidden_layers: int = 5
    num_attention_heads: int = 4
    n_shared_experts: int = 2
    n_routed_experts: int = 16
    num_experts_per_tok: int = 4
    first_k_dense_replace: int = 1
    kv_lora_rank: int = 256
    qk_nope_head_dim: int = 64
    qk_rope_head_dim: int = 32
    v_head_dim: int = 64
    routed_scaling_factor: float = 2.446
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    max_position_embeddings: int = 4096


@dataclass(frozen=True)
class Config:
    """Both halves. extra classes of the throwaway heads: see Labels."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    n_glyphs: int = 128
    n_colours: int = 16
    n_bins: int = 16

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Config:
        return Config(
            VisionConfig(**values["vision"]),
            TextConfig(**values["text"]),
            values["n_glyphs"],
            values["n_colours"],
            values["n_bins"],
        )


def linear(n_in: int, n_out: int, bias: bool = False, gain: float = 0.6) -> nn.Linear:
    layer = nn.Linear(n_in, n_out, bias=bias)
    nn.init.normal_(layer.weight, std=gain / math.sqrt(n_in))
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """q, k: [B, heads, L, d]; v: [B, heads, L, dv]; bias: added to the scores, broadcast. -> [B, L, heads * dv]."""
    b, h, n, _ = q.shape
    scores = torch.matmul(q * scale, k.transpose(-1, -2))
    if bias is not None:
        scores = scores + bias
    out = torch.matmul(scores.softmax(-1).to(v.dtype), v)
    return out.transpose(1, 2).reshape(b, n, h * v.shape[-1])


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates adjacent pairs of the last dimension. cos, sin: broadcast to [..., d / 2]."""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


# ---------------------------------------------------------------------------------------------------------- the eye


def vision_angles(height: int, width: int, head_dim: int) -> Tensor:
    """[height * width, head_dim / 2]: pair 2i turns with the column, pair 2i + 1 with the row."""
    freqs = 10000.0 ** (-torch.arange(0, head_dim, 4, dtype=torch.float64) / head_dim)
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    both = torch.stack((column.reshape(-1, 1) * freqs, row.reshape(-1, 1) * freqs), -1)
    return both.flatten(1).float()


class VisionBlock(nn.Module):
    """One layer of MoonViT."""

    def __init__(self, c: VisionConfig) -> None:
        super().__init__()
        d = c.hidden_size
        self.heads, self.head_dim = c.num_attention_heads, d // c.num_attention_heads
        self.norm0, self.norm1 = nn.LayerNorm(d, eps=1e-5), nn.LayerNorm(d, eps=1e-5)
        out_gain = 0.6 / math.sqrt(2 * c.num_hidden_layers)
        self.wqkv, self.wo = linear(d, 3 * d, True), linear(d, d, True, out_gain)
        self.mlp = nn.ModuleDict(
            {"fc0": linear(d, c.intermediate_size, True), "fc1": linear(c.intermediate_size, d, True, out_gain)}
        )

    def forward(self, h: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, n, _ = h.shape
        qkv = self.wqkv(self.norm0(h)).view(b, n, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k = rotate(qkv[0], cos, sin), rotate(qkv[1], cos, sin)
        h = h + self.wo(attend(q, k, qkv[2], self.head_dim**-0.5))
        return h + self.mlp["fc1"](F.gelu(self.mlp["fc0"](self.norm1(h)), approximate="tanh"))


class PatchEmbed(nn.Module):
    def __init__(self, c: VisionConfig) -> None:
        super().__init__()
        p, d = c.patch_size, c.hidden_size
        self.proj = nn.Conv2d(3, d, p, p)
        nn.init.normal_(self.proj.weight, std=1.0 / math.sqrt(3 * p * p))
        nn.init.zeros_(self.proj.bias)
        self.pos_emb = nn.ParameterDict(
            {"weight": nn.Parameter(0.4 * torch.randn(c.init_pos_emb_height, c.init_pos_emb_width, d))}
        )

    def forward(self, pixels: Tensor) -> Tensor:
        b, _, height, width = pixels.shape
        p = self.proj.kernel_size[0]
        rows, columns = height // p, width // p
        patches = pixels.view(b, 3, rows, p, columns, p).permute(0, 2, 4, 1, 3, 5).reshape(b, rows * columns, -1)
        x = F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)
        table = self.pos_emb["weight"].permute(2, 0, 1)[None].float()
        where = F.interpolate(table, size=(rows, columns), mode="bicubic")[0].flatten(1).t()
        return x + where


class VisionTower(nn.Module):
    def __init__(self, c: VisionConfig) -> None:
        super().__init__()
        self.config = c
        self.patch_embed = PatchEmbed(c)
        self.encoder = nn.ModuleDict(
            {
                "blocks": nn.ModuleList(VisionBlock(c) for _ in range(c.num_hidden_layers)),
                "final_layernorm": nn.LayerNorm(c.hidden_size, eps=1e-5),
            }
        )
        self._angles: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels: [B, 3, H, W] from -1 to 1 -> [B, H/14 * W/14, hidden_size]."""
        c = self.config
        grid = pixels.shape[2] // c.patch_size, pixels.shape[3] // c.patch_size
        if grid not in self._angles:
            angles = vision_angles(*grid, c.hidden_size // c.num_attention_heads)
            self._angles[grid] = angles.cos().to(pixels.device), angles.sin().to(pixels.device)
        cos, sin = self._angles[grid]
        h = self.patch_embed(pixels)
        for block in self.encoder["blocks"]:
            h = block(h, cos, sin)
        return self.encoder["final_layernorm"](h)


class Projector(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        d = c.vision.hidden_size
        self.pre_norm = nn.LayerNorm(d, eps=1e-5)
        self.linear_1, self.linear_2 = linear(4 * d, 4 * d, True), linear(4 * d, c.text.hidden_size, True)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, rows * columns, d] -> [B, rows/2 * columns/2, hidden_size]."""
        b, (rows, columns) = x.shape[0], grid
        x = self.pre_norm(x).view(b, rows // 2, 2, columns // 2, 2, -1).permute(0, 1, 3, 2, 4, 5)
        return self.linear_2(F.gelu(self.linear_1(x.reshape(b, rows * columns // 4, -1))))


# ------------------------------------------------------------------------------------------------------ the decoder


class RMSNorm(nn.Module):
    def __init__(self, n: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(n)), eps

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class Attention(nn.Module):
    """Multi-head latent attention, expanded. While `guided`, head 0 leaves its scores [B, L, L] behind."""

    scores: Tensor
    guided = False

    def __init__(self, c: TextConfig) -> None:
        super().__init__()
        self.c = c
        h, nope, rope, v, d = (
            c.num_attention_heads,
            c.qk_nope_head_dim,
            c.qk_rope_head_dim,
            c.v_head_dim,
            c.hidden_size,
        )
        self.q_proj = linear(d, h * (nope + rope))
        self.kv_a_proj_with_mqa = linear(d, c.kv_lora_rank + rope)
        self.kv_a_layernorm = RMSNorm(c.kv_lora_rank, 1e-6)
        self.kv_b_proj = linear(c.kv_lora_rank, h * (nope + v))
        self.o_proj = linear(h * v, d, gain=0.6 / math.sqrt(2 * c.num_hidden_layers))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor) -> Tensor:
        c, (b, n, _) = self.c, x.shape
        h, nope, rope = c.num_attention_heads, c.qk_nope_head_dim, c.qk_rope_head_dim
        q = self.q_proj(x).view(b, n, h, nope + rope).transpose(1, 2)
        latent, k_pe = self.kv_a_proj_with_mqa(x).split((c.kv_lora_rank, rope), -1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).view(b, n, h, nope + c.v_head_dim).transpose(1, 2)
        q = torch.cat((q[..., :nope], rotate(q[..., nope:], cos, sin)), -1)
        k_pe = rotate(k_pe[:, None], cos, sin).expand(b, h, n, rope)
        k = torch.cat((kv[..., :nope], k_pe.to(kv.dtype)), -1)
        if self.guided:
            self.scores = torch.matmul(q[:, 0].to(kv.dtype) * (nope + rope) ** -0.5, k[:, 0].mT) + bias[:, 0]
        return self.o_proj(attend(q.to(kv.dtype), k, kv[..., nope:], (nope + rope) ** -0.5, bias))


class SwiGLU(nn.Module):
    def __init__(self, d: int, inner: int, out_gain: float) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = linear(d, inner), linear(d, inner)
        self.down_proj = linear(inner, d, gain=out_gain)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Router(nn.Module):
    def __init__(self, c: TextConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c.n_routed_experts, c.hidden_size) / math.sqrt(c.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(c.n_routed_experts))


class MoE(nn.Module):
    """Routed experts chosen by biased sigmoid scores, and shared ones."""

    load: Tensor  # tokens each expert got in the last forward pass

    def __init__(self, c: TextConfig) -> None:
        super().__init__()
        self.c = c
        e, d, inner = c.n_routed_experts, c.hidden_size, c.moe_intermediate_size
        out_gain = 0.6 / math.sqrt(2 * c.num_hidden_layers)
        self.gate = Router(c)
        self.experts = nn.ParameterDict(
            {
                "gate_proj": nn.Parameter(torch.randn(e, inner, d) * (0.6 / math.sqrt(d))),
                "up_proj": nn.Parameter(torch.randn(e, inner, d) * (0.6 / math.sqrt(d))),
                "down_proj": nn.Parameter(torch.randn(e, d, inner) * (out_gain / math.sqrt(inner))),
            }
        )
        self.shared_experts = SwiGLU(d, c.n_shared_experts * inner, out_gain)

    def forward(self, x: Tensor) -> Tensor:
        shape, c = x.shape, self.c
        x = x.reshape(-1, shape[-1])
        with torch.autocast(x.device.type, enabled=False):
            scores = torch.sigmoid(F.linear(x.float(), self.gate.weight))
        chosen = (scores + self.gate.e_score_correction_bias).topk(c.num_experts_per_tok, -1).indices
        weights = scores.gather(-1, chosen)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20) * c.routed_scaling_factor

        expert = chosen.reshape(-1)
        load = torch.bincount(expert, minlength=c.n_routed_experts)
        self.load = load
        # Every expert's tokens one after another, in rooms of a multiple of 64: few shapes, few compiled kernels.
        rooms = -(-load // 64) * 64
        order = torch.argsort(expert, stable=True)
        chosen_by = expert[order]
        rank = torch.arange(order.numel(), device=x.device) - (torch.cumsum(load, 0) - load)[chosen_by]
        slot = (torch.cumsum(rooms, 0) - rooms)[chosen_by] + rank
        token = order // c.num_experts_per_tok
        lowp = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        sizes = rooms.tolist()
        rows = x.new_zeros(sum(sizes), shape[-1], dtype=lowp)
        rows = rows.index_copy(0, slot, x.to(lowp).index_select(0, token))
        gates, ups, downs = (self.experts[name].to(lowp) for name in ("gate_proj", "up_proj", "down_proj"))
        outs = [
            F.linear(F.silu(F.linear(part, gates[e])) * F.linear(part, ups[e]), downs[e])
            for e, part in enumerate(rows.split(sizes))
            if len(part)
        ]
        out = torch.cat(outs).index_select(0, slot) * weights.reshape(-1).index_select(0, order).to(lowp)[:, None]
        y = torch.zeros_like(x, dtype=torch.float32).index_add(0, token, out.float())
        return (y + self.shared_experts(x)).view(shape)


class Layer(nn.Module):
    out: Tensor  # while its attention is guided: what it returned

    def __init__(self, c: TextConfig, index: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = Attention(c)
        dense = index < c.first_k_dense_replace
        out_gain = 0.6 / math.sqrt(2 * c.num_hidden_layers)
        self.mlp: nn.Module = SwiGLU(c.hidden_size, c.intermediate_size, out_gain) if dense else MoE(c)

    def forward(self, h: Tensor, cos: Tensor, sin: Tensor, bias: Tensor) -> Tensor:
        h = h + self.self_attn(self.input_layernorm(h), cos, sin, bias)
        h = h + self.mlp(self.post_attention_layernorm(h))
        if self.self_attn.guided:
            self.out = h
        return h


class Decoder(nn.Module):
    def __init__(self, c: TextConfig) -> None:
        super().__init__()
        self.c = c
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, std=0.5)
        self.layers = nn.ModuleList(Layer(c, i) for i in range(c.num_hidden_layers))
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)

    def forward(self, h: Tensor, positions: Tensor, bias: Tensor) -> Tensor:
        """h: [B, L, hidden_size]; positions: [B, L]; bias: [B, 1, L, L]. -> normed hidden states."""
        c = self.c
        pair = torch.arange(0, c.qk_rope_head_dim, 2, device=h.device, dtype=torch.float64)
        freqs = (c.rope_theta ** (-pair / c.qk_rope_head_dim)).float()
        angles = positions[:, None, :, None].float() * freqs
        cos, sin = angles.cos(), angles.sin()
        for layer in self.layers:
            h = layer(h, cos, sin, bias)
        return self.norm(h)


class KimiVL(nn.Module):
    """The whole model with the throwaway heads of training (`labels`), which no checkpoint carries."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.config = c
        self.vision_tower = VisionTower(c.vision)
        self.multi_modal_projector = Projector(c)
        self.language_model = nn.ModuleDict({"model": Decoder(c.text)})
        self.language_model["lm_head"] = linear(c.text.hidden_size, c.text.vocab_size, gain=0.3)
        d = c.vision.hidden_size
        heads = {"glyph": 2 * c.n_glyphs, "colour": c.n_colours, "x": c.n_bins, "y": c.n_bins}
        self.labels = nn.ModuleDict({name: linear(d, n, True) for name, n in heads.items()})
        for name, n in heads.items():  # of a merged patch: all of its four
            self.labels[f"merged_{name}"] = linear(c.text.hidden_size, 4 * n, True)
        for kind in ("asked", "named"):  # of a token: where in the picture its sentence is
            self.labels[kind] = linear(c.text.hidden_size, 2 * c.n_bins, True)

    def see(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] from -1 to 1 -> the tower's patches [B, N, d], and embeddings for the decoder [B, N / 4, h]."""
        patches = self.vision_tower(pixels)
        p = self.config.vision.patch_size
        return patches, self.multi_modal_projector(patches, (pixels.shape[2] // p, pixels.shape[3] // p))

    def hidden(self, tokens: Tensor, image: Tensor | None, at: int, positions: Tensor, bias: Tensor) -> Tensor:
        """Hidden states for [B, L] tokens, those from `at` on replaced by the picture's embeddings."""
        h = self.language_model["model"].embed_tokens(tokens)
        if image is not None:
            h = torch.cat((h[:, :at], image.to(h.dtype), h[:, at + image.shape[1] :]), 1)
        return self.language_model["model"](h, positions, bias)

    def logits(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.float(), self.language_model["lm_head"].weight)

    def routers(self) -> Iterator[MoE]:
        for module in self.modules():
            if isinstance(module, MoE):
                yield module


def checkpoint_tensors(model: KimiVL) -> dict[str, Tensor]:
    """Name -> tensor as the Hugging Face checkpoint has them."""
    found: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("labels."):
            continue
        stem, _, last = name.rpartition(".")
        if stem.endswith(".experts"):
            for i, expert in enumerate(tensor):
                found[f"{stem}.{i}.{last}.weight"] = expert
        else:
            found[name] = tensor
    return found
