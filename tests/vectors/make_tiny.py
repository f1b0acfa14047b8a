#!/usr/bin/env python3
"""Tiny random-weight Kimi-VL checkpoints: safetensors, and GGUF in f32, f16, q8_0, q4_k_m and with the old kv_b.

  make_tiny.py --config a --out DIR [--seed 101] [--set text.num_hidden_layers=5]

Weights are drawn in f32 from numpy's PCG64 in a fixed order, rounded to bf16 (so that every peer starts from the same
values; the HF file is bf16 like the real one, the correction bias is f32), and written with the real tensor names.
"""

import argparse
import hashlib
import json
import os

import numpy as np
from kquants import blocks_as_stored, q8_0, stored_types
from kvcommon import CHAT_TEMPLATE, GGUFStream, Tok, text_meta, text_tensors, vision_meta, vision_tensors

TEXT = dict(
    q_lora_rank=None,
    n_group=1,
    topk_group=1,
    norm_topk_prob=True,
    rms_norm_eps=1e-5,
    rope_theta=800000.0,
    max_position_embeddings=4096,
    routed_scaling_factor=2.446,
    first_k_dense_replace=1,
)
VIS = dict(patch_size=14, merge_kernel_size=(2, 2))
# a: like the real shapes (expert ff not a multiple of 256, k_b rows not a multiple of 256), head_dim 72, ffn not /32
CONFIGS = dict(
    a=dict(
        seed=101,
        text=dict(
            TEXT,
            vocab_size=2048,
            hidden_size=256,
            intermediate_size=512,
            moe_intermediate_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            n_shared_experts=2,
            n_routed_experts=16,
            num_experts_per_tok=4,
            kv_lora_rank=256,
            qk_nope_head_dim=64,
            qk_rope_head_dim=32,
            v_head_dim=64,
        ),
        vision=dict(
            VIS,
            hidden_size=144,
            intermediate_size=304,
            num_hidden_layers=3,
            num_attention_heads=2,
            init_pos_emb_height=16,
            init_pos_emb_width=16,
        ),
        scale=dict(kv_a=1.0, patch=1.0),
    ),
)
# d: the shapes of a with routing that does not flip under quantization (see stable_router): it judges f16 and quantized
# files. a has near ties (margins of 1e-5), so it judges f32 arithmetic only.
CONFIGS["d"] = dict(CONFIGS["a"], seed=404, scale=dict(kv_a=1.0, patch=1.0, stable=16))


def bf16(x):
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    r = ((u >> 16) & 1) + 0x7FFF
    return ((u + r) & np.uint32(0xFFFF0000)).view(np.float32)


def weights(cfg, seed):
    """Ordered dict of HF name -> f32 array (bf16-representable, except e_score_correction_bias)."""
    t, v, sc = cfg["text"], cfg["vision"], cfg["scale"]
    rng = np.random.default_rng(seed)
    W = {}

    def lin(name, o, i, gain=1.0):
        W[name] = bf16(rng.standard_normal((o, i), dtype=np.float32) * np.float32(gain / np.sqrt(i)))

    def vec(name, n, mean, std):
        W[name] = bf16(np.float32(mean) + np.float32(std) * rng.standard_normal(n, dtype=np.float32))

    D, P = v["hidden_size"], v["patch_size"]
    pre = "vision_tower.patch_embed."
    W[pre + "proj.weight"] = bf16(
        rng.standard_normal((D, 3, P, P), dtype=np.float32) * np.float32(2.0 * sc["patch"] / np.sqrt(3 * P * P))
    )
    vec(pre + "proj.bias", D, 0, 0.1 * sc["patch"])
    W[pre + "pos_emb.weight"] = bf16(
        np.float32(0.7 * sc["patch"])
        * rng.standard_normal((v["init_pos_emb_height"], v["init_pos_emb_width"], D), dtype=np.float32)
    )
    for i in range(v["num_hidden_layers"]):
        b = "vision_tower.encoder.blocks.%d." % i
        for n in ("norm0", "norm1"):
            vec(b + n + ".weight", D, 1, 0.1)
            vec(b + n + ".bias", D, 0, 0.1)
        lin(b + "wqkv.weight", 3 * D, D, 1.3)
        vec(b + "wqkv.bias", 3 * D, 0, 0.1)
        lin(b + "wo.weight", D, D)
        vec(b + "wo.bias", D, 0, 0.05)
        lin(b + "mlp.fc0.weight", v["intermediate_size"], D)
        vec(b + "mlp.fc0.bias", v["intermediate_size"], 0, 0.1)
        lin(b + "mlp.fc1.weight", D, v["intermediate_size"])
        vec(b + "mlp.fc1.bias", D, 0, 0.05)
    vec("vision_tower.encoder.final_layernorm.weight", D, 1, 0.1)
    vec("vision_tower.encoder.final_layernorm.bias", D, 0, 0.1)
    k = D * v["merge_kernel_size"][0] * v["merge_kernel_size"][1]
    vec("multi_modal_projector.pre_norm.weight", D, 1, 0.1)
    vec("multi_modal_projector.pre_norm.bias", D, 0, 0.1)
    lin("multi_modal_projector.linear_1.weight", k, k, 1.2)
    vec("multi_modal_projector.linear_1.bias", k, 0, 0.1)
    lin("multi_modal_projector.linear_2.weight", t["hidden_size"], k, 1.5)
    vec("multi_modal_projector.linear_2.bias", t["hidden_size"], 0, 0.1)

    H, nh = t["hidden_size"], t["num_attention_heads"]
    nope, rope, vd, kvr = t["qk_nope_head_dim"], t["qk_rope_head_dim"], t["v_head_dim"], t["kv_lora_rank"]
    m = "language_model.model."
    W[m + "embed_tokens.weight"] = bf16(rng.standard_normal((t["vocab_size"], H), dtype=np.float32))
    for i in range(t["num_hidden_layers"]):
        b = m + "layers.%d." % i
        vec(b + "input_layernorm.weight", H, 1, 0.1)
        lin(b + "self_attn.q_proj.weight", nh * (nope + rope), H, 1.5)
        kva = rng.standard_normal((kvr + rope, H), dtype=np.float32) / np.float32(np.sqrt(H))
        kva[:kvr] *= np.float32(sc["kv_a"])
        W[b + "self_attn.kv_a_proj_with_mqa.weight"] = bf16(kva)
        vec(b + "self_attn.kv_a_layernorm.weight", kvr, 1, 0.1)
        lin(b + "self_attn.kv_b_proj.weight", nh * (nope + vd), kvr, 1.2)
        lin(b + "self_attn.o_proj.weight", H, nh * vd)
        vec(b + "post_attention_layernorm.weight", H, 1, 0.1)
        if i < t["first_k_dense_replace"]:
            F = t["intermediate_size"]
            lin(b + "mlp.gate_proj.weight", F, H)
            lin(b + "mlp.up_proj.weight", F, H)
            lin(b + "mlp.down_proj.weight", H, F, 1.5)
            continue
        E, F, S = t["n_routed_experts"], t["moe_intermediate_size"], t["n_shared_experts"]
        lin(b + "mlp.gate.weight", E, H, 1.5)
        W[b + "mlp.gate.e_score_correction_bias"] = (0.2 * rng.standard_normal(E)).astype(np.float32)
        for e in range(E):
            lin(b + "mlp.experts.%d.gate_proj.weight" % e, F, H)
            lin(b + "mlp.experts.%d.up_proj.weight" % e, F, H)
            lin(b + "mlp.experts.%d.down_proj.weight" % e, H, F, 1.2)
        lin(b + "mlp.shared_experts.gate_proj.weight", F * S, H)
        lin(b + "mlp.shared_experts.up_proj.weight", F * S, H)
        lin(b + "mlp.shared_experts.down_proj.weight", H, F * S, 1.2)
    vec(m + "norm.weight", H, 1, 0.1)
    lin("language_model.lm_head.weight", t["vocab_size"], H, 2.5)
    return stable_router(W, cfg, rng) if sc.get("stable") else W


A_CODE = 4.0


def stable_router(W, cfg, rng):
    """The first R hidden dims carry a one-hot class of the token (value 4), which no layer overwrites (rows of the
    output projections x 0.02). The router reads mainly these, from a table drawn so that the k-th and (k+1)-th choice
    differ by at least 0.1 for residual norms 1..3, and so that the correction bias changes the choice of at least a
    third of the classes."""
    t, R = cfg["text"], cfg["scale"]["stable"]
    _H, E, k, m = t["hidden_size"], t["n_routed_experts"], t["num_experts_per_tok"], "language_model.model."
    cls = rng.integers(0, R, t["vocab_size"])
    W[m + "embed_tokens.weight"][:, :R] = 0
    W[m + "embed_tokens.weight"][np.arange(t["vocab_size"]), cls] = A_CODE
    n = "multi_modal_projector.linear_2."
    W[n + "weight"][:R] = bf16(W[n + "weight"][:R] * np.float32(0.02))
    W[n + "bias"][:R] = 0
    W[n + "bias"][3] = A_CODE
    for name in list(W):
        if name.startswith(m) and (name.endswith("o_proj.weight") or name.endswith("down_proj.weight")):
            W[name][:R] = bf16(W[name][:R] * np.float32(0.02))
    for i in range(t["first_k_dense_replace"], t["num_hidden_layers"]):
        b = m + "layers.%d.mlp.gate." % i
        nw = W[m + "layers.%d.post_attention_layernorm.weight" % i]
        bias = (0.25 * rng.standard_normal(E)).astype(np.float32)
        W[b + "e_score_correction_bias"] = bias
        g = W[b + "weight"] * np.float32(0.05)
        for c in range(R):
            for tries in range(200000):
                col = bf16(0.5 * rng.standard_normal(E, dtype=np.float32))
                ok, diff = True, False
                for r in (1.0, 1.5, 2.0, 3.0):
                    sc = 1 / (1 + np.exp(-col * (A_CODE * nw[c] / r)))
                    o = np.argsort(-(sc + bias), kind="stable")
                    ch = (sc + bias)[o]
                    ok &= bool(ch[k - 1] - ch[k] >= (0.1 if tries < 100000 else 0.06))
                    diff |= set(o[:k]) != set(np.argsort(-sc, kind="stable")[:k])
                if ok and (diff or c % 3):
                    break
            else:
                raise SystemExit("no routing column found")
            g[:, c] = col
        W[b + "weight"] = bf16(g)
    return W


def digest(W):
    h = hashlib.sha256()
    for k, a in W.items():
        h.update(k.encode() + b"\0" + np.ascontiguousarray(a).tobytes())
    return h.hexdigest()


def gguf_text_weights(W, t, mla_split=True):
    nh, nope, vd, kvr = t["num_attention_heads"], t["qk_nope_head_dim"], t["v_head_dim"], t["kv_lora_rank"]
    m, out = "language_model.model.", {}
    out["token_embd.weight"] = W[m + "embed_tokens.weight"]
    out["output_norm.weight"] = W[m + "norm.weight"]
    out["output.weight"] = W["language_model.lm_head.weight"]
    simple = {
        "input_layernorm.weight": "attn_norm.weight",
        "self_attn.q_proj.weight": "attn_q.weight",
        "self_attn.kv_a_proj_with_mqa.weight": "attn_kv_a_mqa.weight",
        "self_attn.kv_a_layernorm.weight": "attn_kv_a_norm.weight",
        "self_attn.o_proj.weight": "attn_output.weight",
        "post_attention_layernorm.weight": "ffn_norm.weight",
        "mlp.gate_proj.weight": "ffn_gate.weight",
        "mlp.up_proj.weight": "ffn_up.weight",
        "mlp.down_proj.weight": "ffn_down.weight",
        "mlp.gate.weight": "ffn_gate_inp.weight",
        "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
        "mlp.shared_experts.gate_proj.weight": "ffn_gate_shexp.weight",
        "mlp.shared_experts.up_proj.weight": "ffn_up_shexp.weight",
        "mlp.shared_experts.down_proj.weight": "ffn_down_shexp.weight",
    }
    for i in range(t["num_hidden_layers"]):
        b, g = m + "layers.%d." % i, "blk.%d." % i
        for h, n in simple.items():
            if b + h in W:
                out[g + n] = W[b + h]
        kvb = W[b + "self_attn.kv_b_proj.weight"]
        if mla_split:
            r = kvb.reshape(nh, nope + vd, kvr)
            out[g + "attn_k_b.weight"] = np.ascontiguousarray(r[:, :nope].transpose(0, 2, 1))  # [head][kv rank][nope]
            out[g + "attn_v_b.weight"] = np.ascontiguousarray(r[:, nope:])  # [head][v][kv rank]
        else:
            out[g + "attn_kv_b.weight"] = kvb
        if i >= t["first_k_dense_replace"]:
            for n in ("gate", "up", "down"):
                out[g + "ffn_%s_exps.weight" % n] = np.stack(
                    [W[b + "mlp.experts.%d.%s_proj.weight" % (e, n)] for e in range(t["n_routed_experts"])]
                )
    return out


def gguf_vision_weights(W, v):
    D, out = v["hidden_size"], {}
    out["v.patch_embd.weight"] = W["vision_tower.patch_embed.proj.weight"]
    out["v.patch_embd.bias"] = W["vision_tower.patch_embed.proj.bias"]
    out["v.position_embd.weight"] = W["vision_tower.patch_embed.pos_emb.weight"].reshape(-1, D)
    for i in range(v["num_hidden_layers"]):
        b, g = "vision_tower.encoder.blocks.%d." % i, "v.blk.%d." % i
        for s in (".weight", ".bias"):
            q, k, vv = np.split(W[b + "wqkv" + s], 3, axis=0)
            out[g + "attn_q" + s], out[g + "attn_k" + s], out[g + "attn_v" + s] = q, k, vv
            out[g + "attn_out" + s] = W[b + "wo" + s]
            out[g + "ln1" + s], out[g + "ln2" + s] = W[b + "norm0" + s], W[b + "norm1" + s]
            out[g + "ffn_up" + s], out[g + "ffn_down" + s] = W[b + "mlp.fc0" + s], W[b + "mlp.fc1" + s]
    for s in (".weight", ".bias"):
        out["v.post_ln" + s] = W["vision_tower.encoder.final_layernorm" + s]
        out["mm.input_norm" + s] = W["multi_modal_projector.pre_norm" + s]
        out["mm.1" + s], out["mm.2" + s] = (
            W["multi_modal_projector.linear_1" + s],
            W["multi_modal_projector.linear_2" + s],
        )
    return out


def encode(a, typ):
    if typ == "F32":
        return np.ascontiguousarray(a, "<f4")
    if typ == "F16":
        return np.ascontiguousarray(a).astype("<f2")
    if typ == "Q8_0":
        return q8_0(a)
    raise ValueError(typ)


def write_text(path, cfg, W, typ, tok, mla_split=True, stored=None):
    """stored: for Q4_K_M, the checkpoint whose blocks kquants.py knows."""
    t = cfg["text"]
    g = GGUFStream(path)
    text_meta(g, t, "tiny Kimi-VL", {"F32": 0, "F16": 1, "Q8_0": 7, "Q4_K_M": 15}[typ], tok, mla_split)
    ts = [(n, ne, "F32" if len(ne) < 2 or "ffn_gate_inp" in n else typ) for n, ne in text_tensors(t, mla_split)]
    if stored:
        types = stored_types(stored)
        ts = [(n, ne, types[n]) for n, ne, _ in ts]
    G = gguf_text_weights(W, t, mla_split)
    assert set(G) == {n for n, _, _ in ts}, set(G) ^ {n for n, _, _ in ts}
    for x in ts:
        g.tensor(*x)
    g.open()
    for n, ne, ty in ts:
        assert tuple(reversed(G[n].shape)) == tuple(ne), (n, G[n].shape, ne)
        g.data(np.frombuffer(blocks_as_stored(stored, n, G[n]), np.uint8) if stored else encode(G[n], ty))
    g.close()


def write_mmproj(path, cfg, W, typ):
    v = cfg["vision"]
    g = GGUFStream(path)
    vision_meta(g, v, cfg["text"]["hidden_size"], "tiny Kimi-VL mmproj", {"F32": 0, "F16": 1, "Q8_0": 7}[typ])
    ts = []
    for n, ne, kind in vision_tensors(v, cfg["text"]["hidden_size"]):
        ty = {"f": "F32", "p": "F16" if typ == "F16" else "F32"}.get(kind, typ)
        if ty == "Q8_0" and ne[0] % 32:
            ty = "F16"
        ts.append((n, ne, ty))
        g.tensor(n, ne, ty)
    G = gguf_vision_weights(W, v)
    assert set(G) == {n for n, _, _ in ts}
    g.open()
    for n, ne, ty in ts:
        assert tuple(reversed(G[n].shape)) == tuple(ne), (n, G[n].shape, ne)
        g.data(encode(G[n], ty))
    g.close()


def write_hf(out, cfg, W, tok):
    header, blobs, off = {"__metadata__": {"format": "pt"}}, [], 0
    for k, a in W.items():
        f32 = "e_score" in k
        b = (
            np.ascontiguousarray(a, np.float32)
            if f32
            else (np.ascontiguousarray(a, np.float32).view(np.uint32) >> 16).astype("<u2")
        )
        header[k] = {"dtype": "F32" if f32 else "BF16", "shape": list(a.shape), "data_offsets": [off, off + b.nbytes]}
        blobs.append(b)
        off += b.nbytes
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with open(os.path.join(out, "model.safetensors"), "wb") as f:
        f.write(len(head).to_bytes(8, "little") + head)
        for b in blobs:
            f.write(b.tobytes())
    t, v = cfg["text"], cfg["vision"]
    text = dict(
        t,
        architectures=["DeepseekV3ForCausalLM"],
        model_type="deepseek_v3",
        num_key_value_heads=t["num_attention_heads"],
        ep_size=1,
        topk_method="noaux_tc",
        scoring_func="sigmoid",
        moe_layer_freq=1,
        aux_loss_alpha=0.001,
        seq_aux=True,
        hidden_act="silu",
        initializer_range=0.02,
        use_cache=True,
        rope_scaling=None,
        attention_bias=False,
        attention_dropout=0.0,
        tie_word_embeddings=False,
        pretraining_tp=1,
        num_nextn_predict_layers=0,
        bos_token_id=tok.bos,
        eos_token_id=tok.eos,
        pad_token_id=tok.pad,
        torch_dtype="bfloat16",
    )
    vis = dict(v, merge_kernel_size=list(v["merge_kernel_size"]), model_type="moonvit", torch_dtype="bfloat16")
    cfgj = dict(
        architectures=["KimiVLForConditionalGeneration"],
        model_type="kimi_vl",
        ignore_index=-100,
        media_placeholder_token_id=tok.media_pad,
        pad_token_id=tok.pad,
        text_config=text,
        vision_config=vis,
        vocab_size=t["vocab_size"],
        torch_dtype="bfloat16",
    )
    prep = dict(
        image_processor_type="KimiVLImageProcessor",
        patch_size=14,
        num_pooled_tokens=1024,
        pad_input=True,
        in_token_limit=4096,
        merge_kernel_size=[2, 2],
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    tcfg = dict(
        tokenizer_class="TikTokenTokenizer",
        bos_token="[BOS]",
        eos_token="[EOS]",
        unk_token="[UNK]",
        pad_token="[PAD]",
        model_max_length=1048576,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
        additional_special_tokens=[
            "<|im_end|>",
            "<|im_user|>",
            "<|im_assistant|>",
            "<|im_system|>",
            "<|im_middle|>",
            "<|media_start|>",
            "<|media_content|>",
            "<|media_end|>",
            "<|media_pad|>",
        ],
        added_tokens_decoder={
            str(i): dict(content=s, lstrip=False, normalized=False, rstrip=False, single_word=False, special=True)
            for s, i in tok.special.items()
        },
    )
    for name, d in (("config.json", cfgj), ("preprocessor_config.json", prep), ("tokenizer_config.json", tcfg)):
        with open(os.path.join(out, name), "w") as f:
            json.dump(d, f, indent=1)
    tok.write_tiktoken(os.path.join(out, "tiktoken.model"))


def inputs(cfg, tok):
    """Deterministic test inputs: token ids, images (u8 HWC), and the text+image sequence."""
    rng = np.random.default_rng(cfg["seed"] + 7)
    base = tok.base
    text = [tok.bos, *rng.integers(0, base, 63).tolist()]
    sizes = [(56, 56), (224, 336), (420, 308), (28, 700), (14 * cfg["vision"]["init_pos_emb_height"],) * 2]
    imgs = {}
    for h, w in dict.fromkeys(s for s in sizes if s[0] * s[1] <= 500 * 500):
        y, x = np.mgrid[0:h, 0:w].astype(np.float64)
        im = np.stack([np.sin(x / (7 + 3 * c) + c) * np.cos(y / (11 - 2 * c)) for c in range(3)], -1)
        im = 127.5 + 90 * im + rng.normal(0, 25, im.shape)
        imgs["%dx%d" % (h, w)] = np.clip(np.rint(im), 0, 255).astype(np.uint8)
    s = tok.special
    pre = [tok.bos, s["<|im_user|>"], *rng.integers(0, base, 4).tolist(), s["<|im_middle|>"], s["<|media_start|>"]]
    pre += [*rng.integers(0, base, 2).tolist(), s["<|media_content|>"]]
    post = [s["<|media_end|>"], *rng.integers(0, base, 12).tolist(), s["<|im_end|>"], s["<|im_assistant|>"]]
    post += [*rng.integers(0, base, 3).tolist(), s["<|im_middle|>"]]
    long = [tok.bos, *rng.integers(0, base, 599).tolist()]
    return dict(text=text, images=imgs, pre=pre, post=post, mm_image="224x336", long=long)


def write_inputs(out, inp):
    from PIL import Image

    for k, im in inp["images"].items():
        Image.fromarray(im).save(os.path.join(out, "image-%s.png" % k))  # name is HxW
    with open(os.path.join(out, "prompts.json"), "w") as f:
        json.dump(
            dict(
                text=inp["text"],
                long=inp["long"],
                mm_pre=inp["pre"],
                mm_image="image-%s.png" % inp["mm_image"],
                mm_post=inp["post"],
                images={k: hashlib.sha256(im.tobytes()).hexdigest() for k, im in inp["images"].items()},
            ),
            f,
        )


def get_config(name, seed=None, sets=()):
    c = json.loads(json.dumps(CONFIGS[name]))
    if seed is not None:
        c["seed"] = seed
    for s in sets:
        k, v = s.split("=")
        a, b = k.split(".")
        c[a][b] = json.loads(v)
    return c


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--config", default="a", choices=sorted(CONFIGS))
    ap.add_argument("--seed", type=int)
    ap.add_argument("--set", action="append", default=[])
    ap.add_argument("--out", required=True)
    a = ap.parse_args()
    cfg = get_config(a.config, a.seed, a.set)
    os.makedirs(a.out, exist_ok=True)
    tok = Tok(cfg["text"]["vocab_size"], seed=cfg["seed"])
    W = weights(cfg, cfg["seed"])
    write_hf(a.out, cfg, W, tok)

    def p(n):
        return os.path.join(a.out, n)

    for typ in ("F32", "F16"):
        write_text(p("text-%s.gguf" % typ.lower()), cfg, W, typ, tok)
        write_mmproj(p("mmproj-%s.gguf" % typ.lower()), cfg, W, typ)
    write_text(p("text-f32-oldkvb.gguf"), cfg, W, "F32", tok, mla_split=False)
    write_text(p("text-q8_0.gguf"), cfg, W, "Q8_0", tok)
    if a.seed is None and not a.set:
        write_text(p("text-q4_k_m.gguf"), cfg, W, "Q4_K_M", tok, stored=a.config)
    write_mmproj(p("mmproj-q8_0.gguf"), cfg, W, "Q8_0")
    write_inputs(a.out, inputs(cfg, tok))
    meta = dict(
        config=a.config, seed=cfg["seed"], sets=a.set, sha256=digest(W), params=int(sum(x.size for x in W.values()))
    )
    with open(p("tiny.json"), "w") as f:
        json.dump(dict(meta, cfg=cfg), f, indent=1)
    print(json.dumps(meta))


if __name__ == "__main__":
    main()
