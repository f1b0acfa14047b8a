"""Shared pieces: synthetic tokenizer, GGUF metadata and a streaming GGUF writer.

Everything here is written from the published model facts (config values, tensor names), not copied from a peer.
"""

import struct

import numpy as np

# ---------------------------------------------------------------------------------------------
# GGUF writer: header + kv + tensor infos first, then tensor data streamed in order.
# ---------------------------------------------------------------------------------------------
GGML = dict(
    F32=0, F16=1, Q4_0=2, Q4_1=3, Q5_0=6, Q5_1=7, Q8_0=8, Q2_K=10, Q3_K=11, Q4_K=12, Q5_K=13, Q6_K=14, I32=26, BF16=30
)
BLOCK = {
    0: (1, 4),
    1: (1, 2),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    26: (1, 4),
    30: (1, 2),
}
U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)
ALIGN = 32


def tensor_nbytes(ne, t):
    blk, size = BLOCK[t]
    assert ne[0] % blk == 0, (ne, t)
    n = 1
    for d in ne:
        n *= d
    return n // blk * size


class GGUFStream:
    """kv(): metadata; tensor(): declare (ne in ggml order, ne[0] fastest); open(); then data() in declared order."""

    def __init__(self, path):
        self.path, self.kvs, self.tensors, self.off = path, [], [], 0

    def kv(self, key, typ, val):
        self.kvs.append((key, typ, val))

    @staticmethod
    def _val(typ, v):
        if typ == STR:
            b = v if isinstance(v, bytes) else v.encode("utf-8")
            return struct.pack("<Q", len(b)) + b
        if typ == ARR:
            et, items = v
            head = struct.pack("<IQ", et, len(items))
            if et == STR:
                out = [head]
                for it in items:
                    b = it if isinstance(it, bytes) else it.encode("utf-8")
                    out.append(struct.pack("<Q", len(b)) + b)
                return b"".join(out)
            dt = {I32: "<i4", F32: "<f4", U32: "<u4", BOOL: "u1"}[et]
            return head + np.asarray(items, dtype=dt).tobytes()
        return struct.pack(
            {U8: "<B", U32: "<I", I32: "<i", F32: "<f", BOOL: "<B", U64: "<Q", I64: "<q", F64: "<d"}[typ], v
        )

    def tensor(self, name, ne, typ):
        t = GGML[typ] if isinstance(typ, str) else typ
        n = tensor_nbytes(ne, t)
        self.tensors.append((name, tuple(ne), t, self.off, n))
        self.off += (n + ALIGN - 1) // ALIGN * ALIGN

    def open(self):
        self.f = open(self.path, "wb")
        w = self.f.write
        w(b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(self.kvs)))
        for k, t, v in self.kvs:
            kb = k.encode()
            w(struct.pack("<Q", len(kb)) + kb + struct.pack("<I", t) + self._val(t, v))
        for name, ne, t, off, _ in self.tensors:
            nb = name.encode()
            w(
                struct.pack("<Q", len(nb))
                + nb
                + struct.pack("<I", len(ne))
                + struct.pack("<%dQ" % len(ne), *ne)
                + struct.pack("<IQ", t, off)
            )
        self._pad()
        self.base, self.i = self.f.tell(), 0

    def _pad(self):
        r = self.f.tell() % ALIGN
        if r:
            self.f.write(b"\0" * (ALIGN - r))

    def data(self, chunks):
        """Write the next declared tensor from an iterable of buffers (or one array)."""
        name, _ne, _t, off, n = self.tensors[self.i]
        assert self.f.tell() == self.base + off, name
        if isinstance(chunks, np.ndarray):
            chunks = [np.ascontiguousarray(chunks).view(np.uint8).reshape(-1)]
        got = 0
        for c in chunks:
            self.f.write(memoryview(c))
            got += len(c)
        assert got == n, (name, got, n)
        self._pad()
        self.i += 1

    def close(self):
        assert self.i == len(self.tensors)
        self.f.close()

    def close_sparse(self):
        """Extend to full size without data (a sparse file, for llama-quantize --dry-run)."""
        self.f.truncate(self.base + self.off)
        self.f.close()


# ---------------------------------------------------------------------------------------------
# Tokenizer: byte-level BPE with synthetic merges, plus Kimi's special tokens in the last 256 ids.
# ---------------------------------------------------------------------------------------------
def byte_encoder():
    keep = list(range(ord("!"), ord("~") + 1)) + list(range(0xA1, 0xAC + 1)) + list(range(0xAE, 0xFF + 1))
    m, extra = {}, 0
    for b in range(256):
        if b in keep:
            m[b] = chr(b)
        else:
            m[b] = chr(256 + extra)
            extra += 1
    return m


SPECIAL_OFFS = {
    0: "[BOS]",
    1: "[EOS]",
    2: "<|im_end|>",
    3: "<|im_user|>",
    4: "<|im_assistant|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    9: "[EOT]",
    10: "<|im_system|>",
    11: "<|tool_calls_section_begin|>",
    12: "<|tool_calls_section_end|>",
    13: "<|tool_call_begin|>",
    14: "<|tool_call_argument_begin|>",
    15: "<|tool_call_end|>",
    17: "<|im_middle|>",
    18: "<|media_start|>",
    19: "<|media_content|>",
    20: "<|media_end|>",
    21: "<|media_pad|>",
    254: "[UNK]",
    255: "[PAD]",
}

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if loop.first and messages[0]['role'] != 'system' -%}"
    "{{'<|im_system|>system<|im_middle|>You are a helpful assistant<|im_end|>'}}{%- endif -%}"
    "{%- if message['role'] == 'system' -%}{{'<|im_system|>'}}{%- endif -%}"
    "{%- if message['role'] == 'user' -%}{{'<|im_user|>'}}{%- endif -%}"
    "{%- if message['role'] == 'assistant' -%}{{'<|im_assistant|>'}}{%- endif -%}"
    "{{- message['role'] -}}{{'<|im_middle|>'}}"
    "{%- if message['content'] is string -%}{{- message['content'] + '<|im_end|>' -}}"
    "{%- else -%}{%- for content in message['content'] -%}"
    "{%- if content['type'] == 'image' or 'image' in content or 'image_url' in content -%}"
    "{{'<|media_start|>image<|media_content|><|media_pad|><|media_end|>'}}"
    "{%- else -%}{{content['text']}}{%- endif -%}{%- endfor -%}{{'<|im_end|>'}}{%- endif -%}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{'<|im_assistant|>assistant<|im_middle|>'}}{%- endif -%}"
)


class Tok:
    """n_vocab ids: 256 bytes, synthetic merges, 256 special or reserved ones (as in Kimi: base = n_vocab - 256)."""

    def __init__(self, n_vocab, seed=7):
        self.n_vocab, self.base = n_vocab, n_vocab - 256
        be = byte_encoder()
        self.ranks = {bytes([b]): b for b in range(256)}  # tiktoken style: bytes -> rank
        words = [bytes([b]) for b in range(256)]
        pieces = []  # (left, right)
        rng = np.random.default_rng(seed)
        letters = [bytes([c]) for c in b"etaoinshrdlucmfwypvbgkjqxz"]
        pool = list(letters)
        sp = [b" " + c for c in letters]
        for c in letters:  # ' ' + letter first
            self._add(b" ", c, words, pieces)
        pool += sp
        # real words early, so that test prompts use multi-byte tokens
        seedwords = (
            b"the of and to in is you that it he was for on are as with his they at be this have from or one "
            b"had by word but not what all were we when your can said there use an each which she do how their "
            b"if will up other about out many then them these so some her would make like him into time has "
            b"look two more write go see number no way could people my than first water been call who oil its "
            b"now find long down day did get come made may part image describe picture user assistant system "
            b"helpful are"
        ).split()
        for w in seedwords:
            for pre in (b"", b" "):
                s = pre + w
                self._word(s, words, pieces)
        while len(self.ranks) < self.base:
            k = min(self.base - len(self.ranks), 4096)
            ia, ib = rng.integers(0, len(pool), k), rng.integers(0, len(letters), k)
            for a, b in zip(ia, ib, strict=False):
                l, r = pool[a], letters[b]
                if l + r not in self.ranks and len(l) < 12 and len(self.ranks) < self.base:
                    self._add(l, r, words, pieces)
                    pool.append(l + r)

        def enc(bs):
            return "".join(be[c] for c in bs)

        self.tokens = [enc(w) for w in words]
        self.merges = [enc(l) + " " + enc(r) for l, r in pieces]
        self.types = [1] * len(self.tokens)
        self.special = {}
        for o in range(256):
            s = SPECIAL_OFFS.get(o, "<|reserved_token_%d|>" % (self.base + o))
            self.tokens.append(s)
            self.types.append(3)
            self.special[s] = self.base + o
        assert len(self.tokens) == n_vocab and len(set(self.tokens)) == n_vocab
        self.bos, self.eos, self.im_end, self.pad = self.base, self.base + 1, self.base + 2, self.base + 255
        self.media_pad = self.base + 21

    def _add(self, l, r, words, pieces):
        if l + r in self.ranks:
            return
        self.ranks[l + r] = len(words)
        words.append(l + r)
        pieces.append((l, r))

    def _word(self, s, words, pieces):
        for i in range(2, len(s) + 1):
            if len(self.ranks) >= self.base:
                return
            if s[:i] not in self.ranks:
                self._add(s[: i - 1], s[i - 1 : i], words, pieces)

    def write_tiktoken(self, path):
        import base64

        with open(path, "w") as f:
            for b, r in sorted(self.ranks.items(), key=lambda x: x[1]):
                f.write(base64.b64encode(b).decode() + " %d\n" % r)

    def gguf(self, g):
        g.kv("tokenizer.ggml.model", STR, "gpt2")
        g.kv("tokenizer.ggml.pre", STR, "kimi-k2")
        g.kv("tokenizer.ggml.tokens", ARR, (STR, self.tokens))
        g.kv("tokenizer.ggml.token_type", ARR, (I32, self.types))
        g.kv("tokenizer.ggml.merges", ARR, (STR, self.merges))
        g.kv("tokenizer.ggml.bos_token_id", U32, self.bos)
        g.kv("tokenizer.ggml.eos_token_id", U32, self.eos)
        g.kv("tokenizer.ggml.padding_token_id", U32, self.pad)
        g.kv("tokenizer.chat_template", STR, CHAT_TEMPLATE)


# ---------------------------------------------------------------------------------------------
# GGUF metadata
# ---------------------------------------------------------------------------------------------
def text_meta(g, c, name, ftype, tok, mla_split=True):
    """c: dict of HF text_config values."""
    g.kv("general.architecture", STR, "deepseek2")
    g.kv("general.type", STR, "model")
    g.kv("general.name", STR, name)
    g.kv("general.file_type", U32, ftype)
    g.kv("general.quantization_version", U32, 2)
    p = "deepseek2."
    nope, rope, kvr = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["kv_lora_rank"]
    g.kv(p + "block_count", U32, c["num_hidden_layers"])
    g.kv(p + "context_length", U32, c["max_position_embeddings"])
    g.kv(p + "embedding_length", U32, c["hidden_size"])
    g.kv(p + "feed_forward_length", U32, c["intermediate_size"])
    g.kv(p + "attention.head_count", U32, c["num_attention_heads"])
    g.kv(p + "attention.head_count_kv", U32, 1 if mla_split else c["num_attention_heads"])
    g.kv(p + "rope.freq_base", F32, c["rope_theta"])
    g.kv(p + "attention.layer_norm_rms_epsilon", F32, c["rms_norm_eps"])
    g.kv(p + "expert_used_count", U32, c["num_experts_per_tok"])
    g.kv(p + "expert_group_count", U32, c["n_group"])
    g.kv(p + "expert_group_used_count", U32, c["topk_group"])
    g.kv(p + "expert_gating_func", U32, 2)  # 1 softmax, 2 sigmoid
    g.kv(p + "leading_dense_block_count", U32, c["first_k_dense_replace"])
    g.kv(p + "vocab_size", U32, c["vocab_size"])
    if c["num_hidden_layers"] not in (26, 27):  # llama.cpp: "lite" (no q_lora) is keyed on 26/27 layers
        g.kv(p + "attention.q_lora_rank", U32, 0)
    g.kv(p + "attention.kv_lora_rank", U32, kvr)
    if mla_split:
        g.kv(p + "attention.key_length", U32, kvr + rope)
        g.kv(p + "attention.value_length", U32, kvr)
        g.kv(p + "attention.key_length_mla", U32, nope + rope)
        g.kv(p + "attention.value_length_mla", U32, c["v_head_dim"])
    else:
        g.kv(p + "attention.key_length", U32, nope + rope)
        g.kv(p + "attention.value_length", U32, c["v_head_dim"])
    g.kv(p + "expert_feed_forward_length", U32, c["moe_intermediate_size"])
    g.kv(p + "expert_count", U32, c["n_routed_experts"])
    g.kv(p + "expert_shared_count", U32, c["n_shared_experts"])
    g.kv(p + "expert_weights_scale", F32, c["routed_scaling_factor"])
    g.kv(p + "expert_weights_norm", BOOL, bool(c["norm_topk_prob"]))
    g.kv(p + "rope.dimension_count", U32, rope)
    tok.gguf(g)


def text_tensors(c, mla_split=True):
    """[(gguf name, ne)] in file order."""
    H, nh, kvr = c["hidden_size"], c["num_attention_heads"], c["kv_lora_rank"]
    nope, rope, v = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    F, E, sh = c["moe_intermediate_size"], c["n_routed_experts"], c["n_shared_experts"]
    out = [
        ("token_embd.weight", (H, c["vocab_size"])),
        ("output_norm.weight", (H,)),
        ("output.weight", (H, c["vocab_size"])),
    ]
    for i in range(c["num_hidden_layers"]):
        b = "blk.%d." % i
        out += [
            (b + "attn_norm.weight", (H,)),
            (b + "attn_q.weight", (H, nh * (nope + rope))),
            (b + "attn_kv_a_mqa.weight", (H, kvr + rope)),
            (b + "attn_kv_a_norm.weight", (kvr,)),
        ]
        if mla_split:
            out += [(b + "attn_k_b.weight", (nope, kvr, nh)), (b + "attn_v_b.weight", (kvr, v, nh))]
        else:
            out += [(b + "attn_kv_b.weight", (kvr, nh * (nope + v)))]
        out += [(b + "attn_output.weight", (nh * v, H)), (b + "ffn_norm.weight", (H,))]
        if i < c["first_k_dense_replace"]:
            out += [
                (b + "ffn_gate.weight", (H, c["intermediate_size"])),
                (b + "ffn_up.weight", (H, c["intermediate_size"])),
                (b + "ffn_down.weight", (c["intermediate_size"], H)),
            ]
        else:
            out += [
                (b + "ffn_gate_inp.weight", (H, E)),
                (b + "exp_probs_b.bias", (E,)),
                (b + "ffn_gate_exps.weight", (H, F, E)),
                (b + "ffn_up_exps.weight", (H, F, E)),
                (b + "ffn_down_exps.weight", (F, H, E)),
                (b + "ffn_gate_shexp.weight", (H, F * sh)),
                (b + "ffn_up_shexp.weight", (H, F * sh)),
                (b + "ffn_down_shexp.weight", (F * sh, H)),
            ]
    return out


def vision_meta(g, v, text_hidden, name, ftype, min_pixels=None, max_pixels=None):
    g.kv("general.architecture", STR, "clip")
    g.kv("general.type", STR, "mmproj")
    g.kv("general.name", STR, name)
    g.kv("general.file_type", U32, ftype)
    g.kv("general.quantization_version", U32, 2)
    g.kv("clip.has_vision_encoder", BOOL, 1)
    g.kv("clip.projector_type", STR, "kimivl")
    p = "clip.vision."
    g.kv(p + "projection_dim", U32, text_hidden)
    g.kv(p + "image_size", U32, v["init_pos_emb_height"] * v["patch_size"])
    g.kv(p + "patch_size", U32, v["patch_size"])
    g.kv(p + "embedding_length", U32, v["hidden_size"])
    g.kv(p + "feed_forward_length", U32, v["intermediate_size"])
    g.kv(p + "block_count", U32, v["num_hidden_layers"])
    g.kv(p + "attention.head_count", U32, v["num_attention_heads"])
    g.kv(p + "image_mean", ARR, (F32, [0.5, 0.5, 0.5]))
    g.kv(p + "image_std", ARR, (F32, [0.5, 0.5, 0.5]))
    g.kv("clip.use_gelu", BOOL, 1)
    g.kv(p + "projector.scale_factor", U32, v["merge_kernel_size"][0])
    g.kv(p + "attention.layer_norm_epsilon", F32, 1e-5)


def vision_tensors(v, text_hidden):
    """[(gguf name, ne, kind)] kind: 'w' matmul weight, 'p' patch conv, 'f' always f32."""
    D, F, P = v["hidden_size"], v["intermediate_size"], v["patch_size"]
    k = v["merge_kernel_size"][0] * v["merge_kernel_size"][1]
    out = [
        ("v.patch_embd.weight", (P, P, 3, D), "p"),
        ("v.patch_embd.bias", (D,), "f"),
        ("v.position_embd.weight", (D, v["init_pos_emb_height"] * v["init_pos_emb_width"]), "f"),
    ]
    for i in range(v["num_hidden_layers"]):
        b = "v.blk.%d." % i
        for n in ("attn_q", "attn_k", "attn_v", "attn_out"):
            out += [(b + n + ".weight", (D, D), "w"), (b + n + ".bias", (D,), "f")]
        for n in ("ln1", "ln2"):
            out += [(b + n + ".weight", (D,), "f"), (b + n + ".bias", (D,), "f")]
        out += [
            (b + "ffn_up.weight", (D, F), "w"),
            (b + "ffn_up.bias", (F,), "f"),
            (b + "ffn_down.weight", (F, D), "w"),
            (b + "ffn_down.bias", (D,), "f"),
        ]
    out += [
        ("v.post_ln.weight", (D,), "f"),
        ("v.post_ln.bias", (D,), "f"),
        ("mm.input_norm.weight", (D,), "f"),
        ("mm.input_norm.bias", (D,), "f"),
        ("mm.1.weight", (D * k, D * k), "w"),
        ("mm.1.bias", (D * k,), "f"),
        ("mm.2.weight", (D * k, text_hidden), "w"),
        ("mm.2.bias", (text_hidden,), "f"),
    ]
    return out


# Kimi-VL-A3B (moonshotai/Kimi-VL-A3B-Instruct, -Thinking, -Thinking-2506): published config values
FULL_TEXT = dict(
    vocab_size=163840,
    hidden_size=2048,
    intermediate_size=11264,
    moe_intermediate_size=1408,
    num_hidden_layers=27,
    num_attention_heads=16,
    n_shared_experts=2,
    n_routed_experts=64,
    routed_scaling_factor=2.446,
    kv_lora_rank=512,
    q_lora_rank=None,
    qk_rope_head_dim=64,
    v_head_dim=128,
    qk_nope_head_dim=128,
    n_group=1,
    topk_group=1,
    num_experts_per_tok=6,
    first_k_dense_replace=1,
    norm_topk_prob=True,
    rms_norm_eps=1e-5,
    rope_theta=800000.0,
    max_position_embeddings=131072,
)
FULL_VISION = dict(
    patch_size=14,
    num_attention_heads=16,
    num_hidden_layers=27,
    hidden_size=1152,
    intermediate_size=4304,
    init_pos_emb_height=64,
    init_pos_emb_width=64,
    merge_kernel_size=(2, 2),
)


# ---------------------------------------------------------------------------------------------
# Q4_K_M type mix (what llama-quantize chooses for this architecture; checked with --dry-run)
# ---------------------------------------------------------------------------------------------
def q4_k_m_type(name, ne, n_layer):
    def more(i):
        return i < n_layer // 8 or i >= 7 * n_layer // 8 or (i - n_layer // 8) % 3 == 2

    if len(ne) < 2 or "_norm.weight" in name or "ffn_gate_inp" in name or not name.endswith("weight"):
        return "F32"
    t = "Q4_K"
    if name == "output.weight":
        t = "Q6_K" if ne[0] % 256 == 0 else "Q8_0"
    elif ("ffn_down" in name and more(int(name.split(".")[1]))) or (
        "attn_kv_b" in name and more(int(name.split(".")[1]))
    ):
        t = "Q6_K"
    if ne[0] % 256 and t in ("Q4_K", "Q6_K"):
        t = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}[t]
        if ne[0] % 32:
            t = "F16"
    return t
