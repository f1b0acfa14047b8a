"""`kimi-vl bench` on a small model: what it counts, what it prints, and how it reads another program's figures."""

from __future__ import annotations

import csv
import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from kimi_vl_cpp import _core, cli, errors
from kimi_vl_cpp.bench import peer as bench_peer
from kimi_vl_cpp.bench import plot as bench_plot
from kimi_vl_cpp.bench import report as bench_output
from kimi_vl_cpp.bench import work as bench_work
from kimi_vl_cpp.bench.measurements import Bench, BenchOptions, Row, Test, median_machine
from kimi_vl_cpp.cli.bench import run as bench
from kimi_vl_cpp.testing import ROWS_OF_256, make_tiny_model

MACHINE = bench_work.Machine(read_gb_s=10.0, int8_gops=1000.0, f32_gops=100.0, bf16_gops=200.0)
PP64, TG8, PICTURE = Test("prefill", 64), Test("decode", 8, 100), Test("picture", width=56, height=30)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("bench"), text_type="Q4_K_M", **ROWS_OF_256)


@pytest.fixture
def run(capsys, tiny, monkeypatch):
    """Runs `bench` here: .code, .out, .err. The machine is MACHINE unless it is to be measured."""
    measure = Bench.probe

    def call(*arguments, model=tiny.text, quick=("-r", "2", "--probe-seconds", "0.005"), measured=False):
        monkeypatch.setattr(Bench, "probe", measure if measured else lambda self: MACHINE)
        code = cli.main(["bench", "-m", str(model), *quick, *(str(a) for a in arguments)])
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return call


def peer(tmp_path, text, code=0):
    """A command that prints `text` and leaves."""
    program = tmp_path / "peer.py"
    program.write_text(f"import sys\nprint({text!r})\nsys.stderr.write('its own words')\nsys.exit({code})\n", "utf-8")
    return f"{sys.executable} -X utf8 {program}"


# The machine


def test_reading_memory_and_multiplying_have_a_rate():
    # Bounds are those of any processor of these decades, per thread.
    assert 0.1 < _core.bench.read_bandwidth(1, 0.01) < 1000
    for row in _core.isas():
        if row["supported"]:
            assert 0.1 < _core.bench.int8_peak(row["name"], 1, 0.01) < 20_000
            assert 0.1 < _core.bench.f32_peak(row["name"], 1, 0.01) < 2_000
            assert (_core.bench.bf16_peak(row["name"], 1, 0.01) > 0) == (row["name"] in ("amx", "avx512"))


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda: _core.bench.int8_peak("mmx"), "cpu.isa"),
        (lambda: _core.bench.f32_peak("auto", -1), "bench.n_threads"),
        (lambda: _core.bench.read_bandwidth(1, 0.0), "bench.seconds"),
        (lambda: _core.bench.read_bandwidth(1, float("nan")), "bench.seconds"),
    ],
)
def test_a_wrong_argument_of_a_measure_is_refused(call, code):
    with pytest.raises(errors.BadRequest) as caught:
        call()
    assert caught.value.code == code


# The work


class Tensor(SimpleNamespace):
    def __init__(self, name, type_name, *shape, bits=32):
        n = 1
        for size in shape:
            n *= size
        super().__init__(name=name, type=type_name, shape=shape, n_elems=n, n_bytes=n * bits // 8)


CONFIG = {
    "n_vocab": 100, "n_routed_experts": 4, "num_experts_per_tok": 1, "num_attention_heads": 2, "num_hidden_layers": 1,
    "kv_lora_rank": 8, "qk_rope_head_dim": 2, "qk_nope_head_dim": 4, "v_head_dim": 4,
    "vision_layers": 3, "vision_hidden_size": 10,
}  # fmt: skip
TENSORS = [
    Tensor("token_embd.weight", "Q8_0", 100, 16, bits=8),
    Tensor("output.weight", "Q8_0", 100, 16, bits=8),
    Tensor("output_norm.weight", "F32", 16),
    Tensor("blk.0.attn_norm.weight", "F32", 16),
    Tensor("blk.0.attn_q.weight", "Q8_0", 12, 16, bits=8),
    Tensor("blk.0.ffn_gate_inp.weight", "F32", 4, 16),
    Tensor("blk.0.ffn_up_exps.weight", "Q8_0", 4, 8, 16, bits=8),
    Tensor("v.blk.0.ffn_up.weight", "F16", 8, 16, bits=16),
]


def test_of_the_experts_only_the_chosen_ones_count():
    cost = bench_work.TextCost(CONFIG, TENSORS, kv_bytes_per_token=20)
    assert cost.ops_per_token == 2 * (12 * 16 + 4 * 16 + 8 * 16)
    # Matrices, one expert of four, one row of the embedding, the head.
    assert cost.bytes_per_token == 12 * 16 + 4 * 16 * 4 + 8 * 16 + 16 + 1600
    step = cost.step(1, 0)
    assert step.int8_ops == 2 * (12 * 16 + 8 * 16 + 1600)
    assert step.float_ops == 2 * 4 * 16 + 2 * 2 * (4 + 2 + 4)  # router; one pair, two heads, expanded
    # After 1000 tokens one query is cheaper in the absorbed form.
    assert cost.step(1, 1000).float_ops == 2 * 4 * 16 + 1001 * 2 * 2 * (8 + 8 + 2)
    assert cost.step(1, 1000).n_bytes == step.n_bytes + 1000 * 20


def test_a_long_prompt_reads_each_expert_once():
    cost = bench_work.TextCost(CONFIG, TENSORS, kv_bytes_per_token=0)
    everything = 12 * 16 + 4 * 16 * 4 + 4 * 8 * 16 + 1600
    assert cost.step(200, 0).n_bytes == pytest.approx(everything + 200 * 16)
    assert cost.decoding(3, 5).ops == sum(cost.step(1, depth).ops for depth in (5, 6, 7))


def test_answers_that_are_decoded_together_read_the_weights_once():
    cost = bench_work.TextCost(CONFIG, TENSORS, kv_bytes_per_token=20)
    alone, together = cost.decoding(3, 50), cost.decoding(3, 50, streams=8)
    assert together.ops == pytest.approx(8 * alone.ops)
    weights = 12 * 16 + 4 * 16 * 4 + 1600
    experts = (1 - 0.75**8) * 4 * 8 * 16
    assert together.n_bytes == pytest.approx(3 * (weights + experts + 8 * 16) + 8 * 20 * (51 + 52 + 53))


def test_a_picture_counts_the_square_of_its_patches():
    tensors = [Tensor("v.blk.0.ffn_up.weight", "Q8_0", 5, 10, bits=8), Tensor("mm.1.weight", "F16", 7, 10, bits=16)]
    tensors += [Tensor("v.position_embd.weight", "F32", 64, 10), Tensor("v.blk.0.ln1.weight", "F32", 10)]
    work = bench_work.VisionCost(CONFIG, tensors).picture(n_patches=8, n_tokens=2)
    assert work.int8_ops == 2 * 8 * 50
    assert work.float_ops == 2 * 2 * 70 + 4 * 3 * 10 * 64
    assert work.n_bytes == 50 + 140


def test_the_slower_of_reading_and_computing_is_the_ceiling():
    assert MACHINE.seconds(bench_work.Work(n_bytes=20e9)) == (2.0, "memory")
    seconds, bound = MACHINE.seconds(bench_work.Work(1000e9, 400e9, 20e9))
    assert (seconds, bound) == (3.0, "arithmetic")  # one second of int8, two of the faster float rate
    row = Row(Test("prefill", 30), bench_work.Work(1000e9, 400e9, 20e9), [4.0, 5.0, 9.0], [MACHINE])
    assert row.ceiling() == (10.0, "arithmetic")
    assert row.share == 0.5
    picture = Row(PICTURE, bench_work.Work(n_bytes=20e9), [4.0], [MACHINE])
    assert (picture.ceiling()[0], picture.share) == (2.0, 0.5)


def test_the_work_in_a_file_matches_its_shapes(tiny):
    tests = [Test("decode", 1)]
    opened = Bench(str(tiny.text), None, tests, BenchOptions(n_threads=1, kv_type="f16"), probe_seconds=0.005)
    try:
        tensors = {t.name: t for t in opened.core.engine.gguf.tensors}
        config = opened.config
        share = config["num_experts_per_tok"] / config["n_routed_experts"]
        expected = sum(
            t.n_elems * (share if "_exps" in name else 1)
            for name, t in tensors.items()
            if name.startswith("blk.") and name.endswith(".weight") and "norm" not in name
        )
        cost = bench_work.TextCost(config, opened.core.engine.gguf.tensors, 0)
        assert cost.ops_per_token == pytest.approx(2 * expected)
        row = opened.row(tests[0])
        opened.prepare(row.test, lambda words: None)
        row.probes.append(opened.probe())
        assert opened.sample(row) > 0 and row.samples == [row.median]
    finally:
        opened.close()


@pytest.mark.parametrize("kv_type", ["f16", "q8_0", "f32"])
def test_a_deeper_cache_is_more_to_read(tiny, kv_type):
    opened = Bench(str(tiny.text), None, [], BenchOptions(n_threads=1, kv_type=kv_type, n_ctx=64))
    try:
        pool = _core.PagePool(opened.core.engine, 1 << 24, kv_type)
        at, deeper = (opened.row(Test("decode", 1, depth)).work.n_bytes for depth in (0, 50))
        assert deeper - at == 50 * pool.page_bytes / _core.PAGE_POSITIONS > 0
    finally:
        opened.close()


def test_the_median_of_probes_is_taken_measure_by_measure():
    probes = [bench_work.Machine(1, 30, 5, 0), bench_work.Machine(2, 10, 4, 0), bench_work.Machine(9, 20, 6, 0)]
    assert median_machine(probes) == bench_work.Machine(2, 20, 5, 0)


# The command


def test_rows_come_in_a_fixed_order(run):
    report = json.loads(
        run("-p", "16,32", "-n", "4", "-d", "0,20", "--image", "56,84x30", "-o", "json", measured=True).out
    )
    names = [row["test"] for row in report["tests"]]
    assert names == ["pp16", "pp32", "tg4", "pp16 @ d20", "pp32 @ d20", "tg4 @ d20", "image 56x56", "image 84x30"]
    for row in report["tests"]:
        assert row["min"] <= row["median"] <= row["max"] and len(row["samples"]) == 2
        assert row["percent_of_ceiling"] > 0 and row["bound"] in ("memory", "arithmetic")
    last = report["tests"][-1]
    assert (last["n_patches"], last["n_tokens"], last["unit"]) == (6 * 4, 6, "s")  # 84x30 is padded to 84x56
    assert report["complete"] and report["machine"]["read_gb_s"] > 0
    assert {"version", "date", "cpu", "isa", "n_threads", "kv_type", "model", "repetitions"} <= set(report)


def test_only_what_is_asked_for_is_planned():
    def names(**options):
        return [t.name for t in bench.plan(bench.Options(files=bench.opening.Opening(model="x"), **options))]

    assert names() == ["pp512", "tg64"]
    assert names(images="448") == ["image 448x448"]
    assert names(prompts="8", decode="0", depths="") == ["pp8"]
    assert names(prompts="8,8", depths="0,4") == ["pp8", "pp8 @ d4"]
    assert names(prompts="8", warm=True, depths="4") == ["pp8 @ d4", "warm8 @ d4"]
    assert names(decode="8", parallel="1,4", depths="0,4") == ["tg8", "tg8 x4", "tg8 @ d4", "tg8 x4 @ d4"]


def test_answers_together_and_prompts_in_memory_are_timed(run):
    report = json.loads(run("-p", "150", "-n", "3", "-d", "0,140", "--parallel", "1,5", "--warm", "-o", "json").out)
    rows = {row["test"]: row for row in report["tests"]}
    assert list(rows)[:4] == ["pp150", "warm150", "tg3", "tg3 x5"] and "warm150 @ d140" in rows
    assert (rows["tg3 x5"]["streams"], rows["tg3 x5"]["unit"], rows["warm150"]["unit"]) == (5, "t/s", "s")
    assert rows["tg3 x5"]["tera_ops"] == pytest.approx(5 * rows["tg3"]["tera_ops"])


def test_formats_carry_the_same_figures(run, tmp_path):
    plot = tmp_path / "bench.png"
    table = run("-p", "16", "-o", "md", "--plot", plot)
    assert table.code == 0 and "| pp16 " in table.out and "This machine, measured" in table.out
    with Image.open(plot) as picture:
        assert picture.format == "PNG" and picture.width > 500
    rows = list(csv.DictReader(io.StringIO(run("-p", "16", "-n", "4", "-o", "csv").out)))
    assert [row["test"] for row in rows] == ["pp16", "tg4"]
    assert all(float(row["median"]) > 0 and row["model"] == "tiny.gguf" for row in rows)
    lines = [json.loads(line) for line in run("-p", "16", "-n", "4", "-o", "jsonl").out.splitlines()]
    assert [line["test"] for line in lines] == ["pp16", "tg4"] and lines[0]["report"]["isa"]


def test_the_picture_shows_our_share_and_the_peers(tmp_path):
    shares = {"pp512": 80, "tg64": 150}  # one within the ceiling, one beyond it
    rows = [
        {"test": name, "unit": "t/s", "median": 2.0, "percent_of_ceiling": share, "bound": "memory"}
        for name, share in shares.items()
    ]
    rows[0]["against"] = {"ratio": 2.0}
    report = {
        "version": "0",
        "model": {"name": "Kimi · …"},
        "cpu": "c",
        "isa": "avx2",
        "n_threads": 2,
        "kv_type": "f16",
    }
    bench_plot.draw({**report, "date": "today", "tests": rows}, str(tmp_path / "bench.png"))
    with Image.open(tmp_path / "bench.png") as picture:
        pixels = np.asarray(picture)
    blue = (pixels == bench_plot._BLUE).all(-1)
    bars = sorted({int(n) for n in blue.sum(1)} - {0})
    assert bars[-1] in (bench_plot._BAR, bench_plot._BAR + 1)  # beyond the ceiling: the whole bar
    bar = blue[blue.sum(1) == bars[0]][0]
    reach, gaps = np.flatnonzero(bar), np.flatnonzero(~bar)
    inside = gaps[(gaps > reach[0]) & (gaps < reach[-1])]  # the peer's line
    assert reach[-1] - reach[0] == pytest.approx(0.8 * bench_plot._BAR, abs=2)
    assert len(inside) == 3 and inside[1] - reach[0] == pytest.approx(0.4 * bench_plot._BAR, abs=2)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["-p", "many"], 2, "-p many"),
        (["-d", "-1"], 2, "-d -1"),
        (["-p", "0"], 2, "nothing to measure"),
        (["--parallel", "2,x"], 2, "--parallel"),
        (["--parallel", "65"], 2, "up to 64"),
        (["-p", "16", "--parallel", "2"], 2, "with -n"),
        (["-n", "16", "--warm"], 2, "with -p"),
        (["--image", "3x"], 2, "448 or 1344x1008"),
        (["-o", "xml"], 2, "md, csv, json, jsonl"),
        (["-t", "-1"], 2, "-t"),
        (["-c", "0"], 2, "-c"),
        (["--kv-type", "q9"], 2, "kv_type"),
        (["--isa", "mmx"], 2, "mmx"),
        (["--plot", "x.jpg"], 2, ".png"),
        (["--compare", "absent.json"], 2, "absent.json"),
        (["--against-regex", "x"], 2, "--against"),
        (["--against", "true", "--against-regex", "("], 2, "--against-regex"),
        (["--against", "true", "--against-regex", "x"], 2, "group"),
        (["-p", "16", "-c", "8"], 1, "context"),
        (["-p", "100000"], 2, "context"),
    ],
)
def test_mistakes_are_told_in_one_line(run, arguments, code, said):
    result = run(*arguments)
    assert result.code == code
    assert result.err.startswith("error: ") and said in result.err and result.out == ""


def test_repetitions_are_checked(run):
    assert run(quick=("-r", "0")).code == 2


def test_pictures_need_a_vision_file(run, tmp_path):
    model = make_tiny_model(tmp_path, vision="none")
    result = run("--image", "56", model=model.text)
    assert result.code == 2 and "[model.no_vision]" in result.err


def test_an_interrupt_prints_what_was_measured(run, monkeypatch):
    sample = Bench.sample

    def interrupted(self, row):
        if row.test.kind == "decode" and row.samples:
            raise KeyboardInterrupt
        return sample(self, row)

    monkeypatch.setattr(Bench, "sample", interrupted)
    result = run("-p", "16", "-n", "4", "-d", "0,20", "-o", "json")
    report = json.loads(result.out)
    assert result.code == errors.EXIT_CANCELLED and "2 of 4 tests" in result.err
    assert [(row["test"], row["n_samples"]) for row in report["tests"]] == [("pp16", 2), ("tg4", 1)]
    assert report["complete"] is False


# Comparing


def test_an_older_report_is_compared_test_by_test(run, tmp_path):
    before = json.loads(run("-p", "16", "--image", "56", "-o", "json").out)
    for row in before["tests"]:
        row["median"] *= 2
    before["isa"] = "abacus"
    (tmp_path / "old.json").write_text(json.dumps(before))
    result = run("-p", "16,32", "--image", "56", "-o", "json", "--compare", tmp_path / "old.json")
    now = {row["test"]: row for row in json.loads(result.out)["tests"]}
    for row in before["tests"]:
        compare = now[row["test"]]["compare"]
        gain = row["median"] / now[row["test"]]["median"]
        assert compare["before"] == row["median"]
        assert compare["speedup"] == pytest.approx(gain if row["unit"] == "s" else 1 / gain)
    assert "compare" not in now["pp32"]
    assert "isa was abacus" in result.err


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": "kimi-vl bench 1", "tests": [{"test": "pp1"}]}'])
def test_what_is_no_report_is_refused(tmp_path, text):
    path = tmp_path / "old.json"
    path.write_text(text)
    with pytest.raises(errors.BadRequest) as caught:
        bench_output.read_report(str(path))
    assert caught.value.code == "bench.compare"


# Another program

TABLE = """some words before
| model | size | threads |          test |               t/s |
| ----- | ---: | ------: | ------------: | ----------------: |
| any   | 9.81 |       2 |          pp64 |      1,234.5 ± 0.1 |
| any   | 9.81 |       2 |   tg8 @ d100  |      12.50 ± 0.02 |
build: 1
"""
ROWS = [
    {"n_prompt": 64, "n_gen": 0, "n_depth": 0, "avg_ts": 1234.5},
    {"n_prompt": 0, "n_gen": 8, "n_depth": 100, "avg_ts": 12.5},
]
FIGURES = {"pp64": 1234.5, "tg8 @ d100": 12.5}


@pytest.mark.parametrize(
    "output",
    [
        TABLE,
        json.dumps(ROWS, indent=2),
        "loading [1/2]\n" + json.dumps(ROWS),
        "\n".join(json.dumps(row) for row in ROWS),
        "log: {\n" + "\n".join(json.dumps(row) for row in ROWS),
    ],
    ids=["markdown", "json", "json after words", "jsonl", "jsonl after words"],
)
def test_usual_outputs_are_read(output):
    assert bench_peer.parse(output, [PP64, TG8, PICTURE]) == FIGURES


def test_our_own_outputs_are_read(run):
    tests = [Test("prefill", 16), Test("decode", 4), PICTURE]
    for form in ("md", "json", "jsonl"):
        figures = bench_peer.parse(run("-p", "16", "-n", "4", "--image", "56x30", "-o", form).out, tests)
        assert set(figures) == {"pp16", "tg4", PICTURE.name}


@pytest.mark.parametrize(
    ("pattern", "output", "figures"),
    [
        (r"speed (\d+)", "speed 5\nspeed 6", {"pp64": 5, "tg8 @ d100": 6}),
        (r"(?P<test>\w+)=(?P<value>[\d.]+)", "pp64=7.5 other=3", {"pp64": 7.5}),
        (r"took (?P<ms>\d+) ms", "took 500 ms", {"pp64": 128.0}),
        (r"(?P<test>image \S+): (?P<ms>\d+)", "image 56x30: 250", {"image 56x30": 0.25}),
        (r"(?P<test>pp64): (?P<value>\d+)", "pp64: 4\npp64: 8\npp64: 6", {"pp64": 6}),
    ],
)
def test_other_outputs_are_read_by_a_regular_expression(pattern, output, figures):
    assert bench_peer.parse(output, [PP64, TG8, PICTURE], bench_peer.compile_regex(pattern)) == pytest.approx(figures)


@pytest.mark.parametrize("output", ["", "nothing", "[1, 2]", "{}", TABLE.replace("pp64", "pp1").replace("tg8", "tg1")])
def test_an_output_without_our_tests_is_an_error(output):
    with pytest.raises(errors.KimiVLError) as caught:
        bench_peer.parse(output, [PP64, TG8])
    assert caught.value.code == "bench.peer_output"


def test_pairs_on_an_unsteady_machine_are_left_out():
    slower = bench_work.Machine(9.0, 1000.0, 100.0, 200.0)
    duel = bench_peer.Duel(PP64)
    for ours, theirs, after in ((20, 10, MACHINE), (30, 10, MACHINE), (22, 10, MACHINE), (90, 10, slower)):
        duel.add(ours, theirs, MACHINE, after)
    summary = duel.summary()
    assert (summary["ratio"], summary["min"], summary["max"]) == (2.2, 2.0, 3.0)
    assert 2.0 <= summary["low"] <= 2.2 <= summary["high"] <= 3.0
    assert (summary["pairs"], summary["pairs_used"], summary["pairs_unsteady"]) == (4, 3, 1)
    picture = bench_peer.Duel(PICTURE)
    picture.add(2.0, 6.0, MACHINE, slower)
    assert picture.summary()["ratio"] == 3.0 and picture.summary()["pairs_used"] == 1


def test_a_peer_runs_in_turns_and_its_ratio_is_shown(run, tmp_path, monkeypatch):
    turns = []
    sample, command = Bench.sample, bench_peer.run_command
    monkeypatch.setattr(Bench, "sample", lambda self, row: (turns.append("A"), sample(self, row))[1])
    monkeypatch.setattr(bench_peer, "run_command", lambda text: (turns.append("B"), command(text))[1])
    result = run("-p", "64", "-o", "json", "--against", peer(tmp_path, TABLE))
    assert "".join(turns) == "ABBAABBA"
    row = json.loads(result.out)["tests"][0]
    assert len(row["samples"]) == 4 and row["against"]["pairs"] == 4
    assert row["against"]["theirs_samples"] == [1234.5] * 4
    ratios = [ours / 1234.5 for ours in row["samples"]]
    assert min(ratios) * 0.999 <= row["against"]["ratio"] <= max(ratios) * 1.001
    assert "1.234" not in result.err
    assert "ratio" in run("-p", "64", "--against", peer(tmp_path, TABLE)).out


def test_a_peer_that_fails_is_told_with_its_words(run, tmp_path):
    result = run("-p", "64", "--against", peer(tmp_path, TABLE, code=3))
    assert result.code == errors.EXIT_FAILED
    assert "exit code 3" in result.err and "its own words" in result.err and "[bench.peer]" in result.err
    assert "| pp64 " in result.out  # what was measured before
