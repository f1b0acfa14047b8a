#!/usr/bin/env python3
"""Compare the outputs of an implementation with stored vectors: check.py ref-d.npz MINE.npz [--kind ref|q8_0|q4_k_m]

A stored file holds a fixed part of every array: 16 rows of tower/* and proj/*; of the logits 96 columns of every
position (16 positions of long/*), the argmax, the log-sum-exp and the top 5 ids; the greedy ids, the gaps between first
and second logit, and the routing margins. Kinds: ref is computed in float64 on the weights of the checkpoint, q8_0 and
q4_k_m in float64 on the dequantized GGUF file."""

import argparse
import sys

import numpy as np


def rows(n, k=16):
    return np.unique(np.linspace(0, n - 1, min(n, k)).round().astype(int))


def cols(V):
    return np.sort(np.random.default_rng(V).permutation(V)[:96])


def lse(L):
    m = L.max(-1)
    return m + np.log(np.exp(L - m[:, None]).sum(-1))


def check(stored, peer, kind):
    s, p, pre = np.load(stored), np.load(peer), kind + ":"
    for k in s:
        if not k.startswith(pre) or k.endswith("/shape"):
            continue
        n = k[len(pre) :]
        if n.split("/")[0] in ("tower", "proj") and n in p:
            a = p[n]
            if tuple(a.shape) != tuple(s[k + "/shape"]):
                print("%-16s SHAPE %s, expected %s" % (n, a.shape, s[k + "/shape"]))
                continue
            a, b = a[rows(len(a))].astype(np.float64), s[k].astype(np.float64)
            print("%-16s abs %.2e  rel %.2e" % (n, np.abs(a - b).max(), np.linalg.norm(a - b) / np.linalg.norm(b)))
        if n.endswith("/cols") and n[:-5] + "/logits" in p:
            L, m = p[n[:-5] + "/logits"].astype(np.float64), n[:-5]
            a, b = (L[rows(len(L))] if m == "long" else L)[:, cols(L.shape[1])], s[k].astype(np.float64)
            print(
                "%-16s abs %.2e  rel %.2e  top1 %d/%d  lse diff %.2e"
                % (
                    m,
                    np.abs(a - b).max(),
                    np.linalg.norm(a - b) / np.linalg.norm(b),
                    (L.argmax(-1) == s[pre + m + "/argmax"]).sum(),
                    len(L),
                    np.abs(lse(L) - s[pre + m + "/lse"]).max(),
                )
            )
            if m + "/ids" in p:
                i, j = p[m + "/ids"], s[pre + m + "/ids"]
                d = np.nonzero(i[: len(j)] != j[: len(i)])[0]
                print("%-16s greedy %d/%d" % (m, d[0] if len(d) else min(len(i), len(j)), len(j)))


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("stored")
    ap.add_argument("mine")
    ap.add_argument("--kind", default="ref")
    x = ap.parse_args()
    check(x.stored, x.mine, x.kind)


if __name__ == "__main__":
    sys.exit(main())
