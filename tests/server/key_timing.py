"""Whether the time in which a wrong key is refused says how much of it is right:

    python tests/server/key_timing.py

Compares wrong keys of 0, 1, ... right first characters with Welch's t-test, each pair interleaved; |t| stays below 4.5.
"""

from __future__ import annotations

import itertools
import random
import statistics
import sys
import time

from kimi_vl_cpp.server.keys import Keys

N = 10_000
MOST = 4.5
KEY = "5f8a1c3e9b7d2046"


def welch(one: list[int], other: list[int]) -> float:
    spread = statistics.variance(one) / len(one) + statistics.variance(other) / len(other)
    return (statistics.fmean(one) - statistics.fmean(other)) / spread**0.5


def main() -> int:
    keys = Keys((f"ann:{KEY}", "bob:0000000000000000"))
    wrong = {n: (KEY[:n] + "x" * (len(KEY) - n)).encode() for n in range(len(KEY))}
    times: dict[int, list[int]] = {n: [] for n in wrong}
    order = list(wrong)
    for _ in range(N):
        random.shuffle(order)
        for n in order:
            key = bytes(bytearray(wrong[n]))  # no kind keeps a place in memory
            started = time.perf_counter_ns()
            keys.name_of(key)
            times[n].append(time.perf_counter_ns() - started)
    slow = statistics.quantiles(itertools.chain(*times.values()), n=10)[-1]  # the machine did something else
    quick = {n: [value for value in values if value <= slow] for n, values in times.items()}
    found = {n: welch(quick[0], quick[n]) for n in order if n}
    worst = max(found, key=lambda n: abs(found[n]))
    print(f"{N} wrong keys of each kind; largest |t| {abs(found[worst]):.2f}, with {worst} right characters")
    return int(abs(found[worst]) >= MOST)


if __name__ == "__main__":
    sys.exit(main())
