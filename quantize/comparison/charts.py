"""The figures of a comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .drawing import Drawing, clipped, series, text_width
from .report import Candidate, CompareReport, Divergence, percent

_ROW = 20.0
_LEAST_KL = 1e-7  # what is nearer is drawn here


def charts(report: CompareReport) -> dict[str, list[Drawing]]:
    """Section -> its figures; only those that have something to show."""
    with_weights = [c for c in report.candidates if c.weights is not None and c.weights.tensors]
    found: dict[str, list[Drawing]] = {"predictions": [divergences(report)], "weights": [], "experts": []}
    if len(report.candidates) > 1:
        found["predictions"].insert(0, sizes(report))
    for is_vision in (False, True):
        drawn = layers(report, with_weights, is_vision)
        found["weights"] += [drawn] if drawn else []
    found["weights"] += [
        heat(candidate, i) for i, candidate in enumerate(report.candidates) if candidate in with_weights
    ]
    if report.experts:
        found["experts"] = [experts(report)]
    return found


def _log_ticks(low: float, high: float) -> list[float]:
    return [10.0**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]


def _power(x: float) -> str:
    return f"{x:g}" if 1e-4 <= x < 1e5 else f"1e{round(math.log10(x))}"


def divergences(report: CompareReport) -> Drawing:
    """Quantiles of KL of every candidate, texts and pictures apart, on a logarithmic axis."""
    rows: list[tuple[str, int, Divergence]] = []
    for i, candidate in enumerate(report.candidates):
        for what, d in (("texts", candidate.text), ("pictures", candidate.picture)):
            if d is not None:
                rows.append((f"{candidate.model.label}, {what}", i, d))
    values = [max(x, _LEAST_KL) for _, _, d in rows for x in (d.median, d.p90, d.p99, d.max, d.mean)]
    ticks = _log_ticks(min(values), max(values) * 1.001)
    if len(ticks) == 1:
        ticks.append(ticks[0] * 10)
    label = min(300.0, max(text_width(name, 12) for name, _, _ in rows) + 16)
    drawing = Drawing(
        "kl",
        "How far predictions are from the reference",
        "KL divergence in nats at every scored place, logarithmic: the bar reaches from the median to 99 % of places, "
        "filled dots are the mean, rings the 90 % quantile and the worst place. Further left is nearer.",
        height=30 + 30 * len(rows) + 24,
    )
    left, right = label, drawing.width - 16

    def at(x: float) -> float:
        share = (math.log10(max(x, _LEAST_KL)) - math.log10(ticks[0])) / (math.log10(ticks[-1]) - math.log10(ticks[0]))
        return left + share * (right - left)

    bottom = 10 + 30 * len(rows)
    for tick in ticks:
        drawing.line(((at(tick), 6), (at(tick), bottom)), "grid")
        drawing.words(at(tick), bottom + 18, _power(tick), 11, "middle", "pale")
    for k, (name, i, d) in enumerate(rows):
        y = 25 + 30 * k
        drawing.words(label - 12, y + 4, clipped(name, 12, label - 16), 12, "end")
        drawing.line(((at(d.median), y), (at(d.max), y)), series(i), 1)
        drawing.rect(
            at(d.median),
            y - 6,
            max(2.0, at(d.p99) - at(d.median)),
            12,
            series(i),
            0.35,
            f"median {d.median:.3g} to 99 % {d.p99:.3g}",
        )
        drawing.dot(at(d.p90), y, 4, series(i), f"90 % below {d.p90:.3g}", hollow=True)
        drawing.dot(at(d.max), y, 4, series(i), f"worst {d.max:.3g}", hollow=True)
        drawing.dot(at(d.mean), y, 5, series(i), f"mean {d.mean:.3g}")
    return drawing


def sizes(report: CompareReport) -> Drawing:
    """Size against agreement of all candidates."""
    drawing = Drawing(
        "sizes",
        "What a byte buys",
        "Size of each file against how often it thinks the same next token as the reference. Filled: pictures, rings: "
        "texts; the lines are 95 % intervals. Higher and further left is better.",
        height=300,
    )
    left, right, top, bottom = 60.0, drawing.width - 150, 14.0, 250.0
    found = [d for c in report.candidates for d in (c.text, c.picture) if d is not None]
    lowest = max(0.0, math.floor(min(d.top_low for d in found) * 20) / 20)
    lowest = min(lowest, 0.95)
    biggest = max(c.model.facts.n_bytes for c in report.candidates) / 1e9
    unit, divide = ("GB", 1.0) if biggest >= 1 else ("MB", 1e-3)

    def y(share: float) -> float:
        return bottom - (max(share, lowest) - lowest) / (1 - lowest) * (bottom - top)

    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25) if (1 - lowest) / s <= 6 or s == 0.25)
    for k in range(round((1 - lowest) / step) + 1):
        share = 1 - k * step
        drawing.line(((left, y(share)), (right, y(share))), "grid")
        drawing.words(left - 8, y(share) + 4, f"{100 * share:.0f} %", 11, "end", "pale")
    top_size = biggest / divide * 1.05

    def x(n_bytes: int) -> float:
        return left + n_bytes / 1e9 / divide / top_size * (right - left)

    nice = _nice(top_size / 6)
    for k in range(int(top_size / nice) + 1):
        drawing.words(x(round(k * nice * divide * 1e9)), bottom + 20, f"{k * nice:g}", 11, "middle", "pale")
    drawing.words(right, bottom + 38, f"size in {unit}", 11, "end", "pale")
    taken: list[float] = []
    for i, candidate in sorted(enumerate(report.candidates), key=lambda pair: -pair[1].overall.top):
        place = x(candidate.model.facts.n_bytes)
        for d, shift, hollow in ((candidate.text, 5.0, True), (candidate.picture, -5.0, False)):
            if d is None:
                continue
            drawing.line(((place + shift, y(d.top_low)), (place + shift, y(d.top_high))), series(i), 1.4)
            drawing.dot(place + shift, y(d.top), 5, series(i), f"{candidate.model.label}: {percent(d.top)}", hollow)
        main = candidate.picture or candidate.overall
        height = y(main.top) + 4
        while any(abs(height - other) < 15 for other in taken):
            height += 15
        taken.append(height)
        drawing.words(
            place + 16, height, clipped(candidate.model.label, 12, drawing.width - place - 20), 12, "start", series(i)
        )
    return drawing


def _nice(x: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(x))
    return next(k * power for k in (1, 2, 5, 10) if k * power >= x * 0.999)


def layers(report: CompareReport, candidates: Sequence[Candidate], is_vision: bool) -> Drawing | None:
    """Relative error of the weights of every layer, a line for each candidate."""
    lines = [
        (i, candidate.model.label, found)
        for i, candidate in enumerate(report.candidates)
        if candidate in candidates and candidate.weights and (found := candidate.weights.by_layer(is_vision))
    ]
    lines = [(i, name, {n: e for n, e in found.items() if math.isfinite(e)}) for i, name, found in lines]
    highest = max((e for _, _, found in lines for e in found.values()), default=0.0)
    if highest == 0:
        return None
    part = "vision part" if is_vision else "text part"
    drawing = Drawing(
        "weights-vision-layers" if is_vision else "weights-text-layers",
        f"Error of the weights, layer by layer: {part}",
        "Of each layer the length of the error divided by the length of the reference's weights.",
        height=258,
    )
    below = drawing.legend([name for _, name, _ in lines], 46, 14) if len(lines) > 1 else 6
    left, right, top, bottom = 54.0, drawing.width - 16, below + 4, 214.0
    numbers = sorted({layer for _, _, found in lines for layer in found})
    step = _nice(100 * highest / 5)
    steps = math.ceil(100 * highest / step)

    def y(error: float) -> float:
        return bottom - 100 * error / (step * steps) * (bottom - top)

    def x(layer: int) -> float:
        return left + 12 + (layer - numbers[0]) / max(1, numbers[-1] - numbers[0]) * (right - left - 24)

    for k in range(steps + 1):
        drawing.line(((left, y(k * step / 100)), (right, y(k * step / 100))), "grid")
        at = bottom - k / steps * (bottom - top)
        drawing.words(left - 8, at + 4, f"{k * step:g} %", 11, "end", "pale")
    every = max(1, math.ceil(len(numbers) / 27))
    for layer in numbers[::every]:
        drawing.words(x(layer), bottom + 18, str(layer), 11, "middle", "pale")
    drawing.words(right, bottom + 34, "layer", 11, "end", "pale")
    for n, (_, name, found) in enumerate(lines):
        drawing.line([(x(layer), y(error)) for layer, error in found.items()], series(n), 2)
        for layer, error in found.items():
            drawing.dot(x(layer), y(error), 3, series(n), f"{name}, layer {layer}: {100 * error:.3g} %")
    return drawing


def heat(candidate: Candidate, index: int) -> Drawing:
    """Every tensor: a row for each role, a column for each layer, the darker the further from the reference."""
    assert candidate.weights is not None
    tensors = [t for t in candidate.weights.tensors if math.isfinite(t.relative)]
    worst = max((t.relative for t in tensors), default=0.0) or 1.0
    roles = list(dict.fromkeys(t.role for t in tensors if t.relative > 0))
    found = {(t.role, t.layer): t for t in tensors}
    total = candidate.weights.by_role()
    columns = sorted({t.layer for t in tensors if t.layer is not None})
    drawing = Drawing(
        f"weights-{index + 1}",
        f"Error of every tensor: {candidate.model.label}",
        f"A column for each layer; full colour is {100 * worst:.3g} %. Behind each row: its type and its error as a "
        "whole. Tensors that did not change have no row.",
        height=24 + _ROW * len(roles) + 10,
        folds=True,
    )
    label = max([text_width(role, 12) for role in roles] or [0.0]) + 12
    tail = 130.0
    cell = (drawing.width - label - tail) / max(1, len(columns))
    if not roles:
        drawing.height = 30
        drawing.words(0, 18, "no weight differs", 12, "start", "pale")
        return drawing
    every = max(1, math.ceil(len(columns) / 27))
    for k, layer in enumerate(columns):
        if k % every == 0:
            drawing.words(label + (k + 0.5) * cell, 12, str(layer), 10, "middle", "pale")
    for r, role in enumerate(roles):
        y = 20 + _ROW * r
        drawing.words(label - 8, y + 13, role, 12, "end")
        kinds = list(dict.fromkeys(t.type_b for t in tensors if t.role == role))
        lone = found.get((role, None))
        if lone is not None:
            what = f"{lone.name}: {100 * lone.relative:.3g} %, {lone.type_b}"
            drawing.rect(
                label,
                y,
                cell * max(1, len(columns)) - 1,
                _ROW - 2,
                series(index),
                _strength(lone.relative / worst),
                what,
            )
        for k, layer in enumerate(columns):
            tensor = found.get((role, layer))
            if tensor is not None:
                what = f"{tensor.name}: {100 * tensor.relative:.3g} %, {tensor.type_b}"
                strength = _strength(tensor.relative / worst)
                drawing.rect(label + k * cell, y, cell - 1, _ROW - 2, series(index), strength, what)
        kind = kinds[0] if len(kinds) == 1 else f"{kinds[0]}, …"
        drawing.words(
            label + cell * len(columns) + 8, y + 13, f"{kind}  {100 * total[role]:.3g} %", 11, "start", "pale"
        )
    return drawing


def _strength(share: float) -> float:
    return 0.06 + 0.94 * min(1.0, share)


def experts(report: CompareReport) -> Drawing:
    """How often the experts of each layer were used, the busiest first."""
    n_experts = max(len(counts) for counts in report.experts.values())
    drawing = Drawing(
        "experts",
        "How often experts were used",
        "A row for each layer, its experts from the busiest to the idlest; the height is the share of tokens that "
        "passed an expert, the line is what all would have if they were used alike.",
        height=34 * len(report.experts) + 10,
    )
    left, right = 40.0, drawing.width - 200
    cell = (right - left) / n_experts
    for r, (layer, counts) in enumerate(report.experts.items()):
        base = 34.0 * (r + 1)
        ordered = np.sort(counts)[::-1]
        most = max(1, int(ordered[0]))
        total = max(1, int(counts.sum()))
        drawing.words(left - 10, base - 8, str(layer), 11, "end", "pale")
        for k, count in enumerate(ordered.tolist()):
            height = 28 * count / most
            drawing.rect(
                left + k * cell,
                base - height,
                max(cell - 0.6, 0.6),
                height,
                "c0",
                1.0,
                f"{count} tokens, {percent(count / total)}",
            )
        even = 28 * (total / len(ordered)) / most
        drawing.line(((left, base - even), (left + cell * len(ordered), base - even)), "c1", 1)
        idle = int((counts == 0).sum())
        words = f"{most:,} to {int(ordered[-1]):,}" + (f", {idle} never" if idle else "")
        drawing.words(right + 10, base - 8, words, 11, "start", "pale")
    return drawing
