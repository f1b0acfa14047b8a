"""The NumPy network against the stored vectors, against itself, and against the small numbers of the specification."""

from __future__ import annotations

import numpy as np
import pytest
from reference import Network, functions, mla, moe, moonvit, picture, projector
from vectors import PROMPTS, Vectors, agreeing, assert_near

from kimi_vl_cpp.testing import read_model

# The stored vectors are float64 results rounded to float32 (half a unit: 6e-8 of each value).
STORED = 1e-7


@pytest.fixture(scope="module", params=["a", "d"])
def vectors(request, checkpoint_dir):
    return Vectors(checkpoint_dir(request.param), request.param)


@pytest.fixture(scope="module")
def network(vectors):
    model = read_model(vectors.text_file("f32"), vectors.mmproj_file("f32"))
    return Network(model.weights, model.config)


def test_tower_and_projector_agree_with_the_stored_vectors(vectors, network):
    for name in vectors.pictures:
        pixels = vectors.picture(name)
        rows, cols = (side // 14 for side in pixels.shape[:2])
        tower = network.vision_tower(pixels)
        vectors.check_rows(tower, f"tower/{name}", STORED)
        vectors.check_rows(projector.project(tower, rows, cols, network.weights), f"proj/{name}", STORED)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_decoder_agrees_with_the_stored_vectors(vectors, network, prompt):
    timeline = network.timeline(absorbed=prompt == "long")
    logits = timeline.extend(vectors.parts(prompt, network.encode_image))
    vectors.check_logits(logits, prompt, STORED)
    assert (logits.argmax(-1) == vectors.of("ref", prompt, "argmax")).all()
    assert np.abs(timeline.margin - vectors.of("ref", prompt, "margin")[: len(logits)]).max() < STORED
    want = vectors.of("ref", prompt, "ids")
    got = [int(logits[-1].argmax())]
    while len(got) < len(want):
        got.append(int(timeline.extend([got[-1:]])[-1].argmax()))
    assert agreeing(got, want) == len(want)


@pytest.mark.parametrize("kind", ["q8_0", "q4_k_m"])
def test_network_over_a_dequantized_file_agrees_with_the_stored_vectors(vectors, kind):
    model = read_model(vectors.text_file(kind))
    logits = Network(model.weights, model.config).logits(vectors.parts("text", None), absorbed=True)
    vectors.check_logits(logits, "text", STORED, kind)


def test_the_older_layout_holds_the_same_weights(vectors):
    new, old = (read_model(vectors.text_file(kind)).weights for kind in ("f32", "f32-oldkvb"))
    assert new.keys() == old.keys()
    assert all(np.array_equal(new[name], old[name]) for name in new)


def test_absorbed_and_expanded_attention_are_the_same(tiny_model, network_of):
    net = network_of(tiny_model(qk_nope_head_dim=24, v_head_dim=20, num_attention_heads=3))
    parts = [np.arange(40), np.random.default_rng(0).normal(size=(9, 64))]
    # float64 sums of a few hundred terms, in another order
    assert_near(net.logits(parts, absorbed=True), net.logits(parts, absorbed=False), 1e-12)


def test_a_prompt_in_pieces_is_the_prompt_in_one(tiny_model, network_of):
    net = network_of(tiny_model())
    ids = np.arange(100, 150)
    pieces = net.timeline()
    got = np.concatenate([pieces.extend([ids[:1]]), pieces.extend([ids[1:17], ids[17:18]]), pieces.extend([ids[18:]])])
    assert_near(got, net.logits([ids]), 1e-12)


def test_greedy_continues_with_the_most_likely(tiny_model, network_of):
    net = network_of(tiny_model())
    ids = net.greedy([np.arange(10)], 5)
    logits = net.logits([np.arange(10), ids])
    assert ids == logits[9:14].argmax(-1).tolist()


# Sizes: width x height -> resized, padded, tokens, for limits of 4096 and 16384 patches.
SIZES = [
    ((448, 448), 4096, (448, 448), (448, 448), 256),
    ((640, 480), 4096, (640, 480), (644, 504), 414),
    ((896, 896), 4096, (896, 896), (896, 896), 1024),
    ((897, 897), 4096, (897, 897), (924, 924), 1089),
    ((1008, 1008), 4096, (896, 896), (896, 896), 1024),
    ((1008, 1008), 16384, (1008, 1008), (1008, 1008), 1296),
    ((1024, 768), 4096, (1024, 768), (1036, 784), 1036),
    ((1280, 720), 4096, (1202, 676), (1204, 700), 1075),
    ((1280, 720), 16384, (1280, 720), (1288, 728), 1196),
    ((1920, 1080), 4096, (1196, 672), (1204, 672), 1032),
    ((1920, 1080), 16384, (1920, 1080), (1932, 1092), 2691),
    ((1792, 1792), 16384, (1792, 1792), (1792, 1792), 4096),
    ((3840, 2160), 4096, (1196, 672), (1204, 672), 1032),
    ((100, 100), 4096, (100, 100), (112, 112), 16),
    ((50, 2000), 4096, (50, 2000), (56, 2016), 144),
]


@pytest.mark.parametrize("size, limit, resized, padded, tokens", SIZES)
def test_picture_sizes(size, limit, resized, padded, tokens):
    assert picture.processed_size(*size, limit) == (resized, padded)
    assert picture.n_tokens(*padded) == tokens


@pytest.mark.parametrize(
    "n_in, n_out, i, taps, weights",
    [
        (64, 32, 5, [9, 10, 11, 12], [-0.09375, 0.59375, 0.59375, -0.09375]),
        (64, 128, 0, [0, 0, 0, 1], [-0.03515625, 0.26171875, 0.87890625, -0.10546875]),
        (64, 46, 10, [13, 14, 15, 16], [-0.06476278, 0.97502209, 0.09763859, -0.00789790]),
    ],
)
def test_bicubic_taps(n_in, n_out, i, taps, weights):
    got_taps, got_weights = moonvit.bicubic_taps(n_in, n_out, i)
    assert got_taps.tolist() == taps
    assert np.abs(got_weights - weights).max() < 6e-9  # eight decimals


def test_bicubic_weights_sum_to_one_and_keep_the_table_of_its_own_size():
    assert np.abs(moonvit.resampling_matrix(16, 37).sum(1) - 1).max() < 4e-15  # sums of four terms near 1
    table = np.random.default_rng(0).normal(size=(6, 6, 3))
    assert np.array_equal(moonvit.position_embedding(table, 6, 6), table.reshape(36, 3))
    resampled = moonvit.position_embedding(table, 6, 4).reshape(6, 4, 3)
    assert_near(resampled[2], moonvit.resampling_matrix(6, 4) @ table[2], 1e-14)


FREQUENCIES_72 = [
    *(1, 0.59948425, 0.35938137, 0.21544347, 0.12915497, 0.077426368, 0.046415888, 0.027825594, 0.016681005),
    *(0.01, 0.0059948425, 0.0035938137, 0.0021544347, 0.0012915497, 0.00077426368, 0.00046415888, 0.00027825594),
    0.00016681005,
]


def test_rotary_frequencies_of_the_tower():
    angles = moonvit.rope_angles(2, 2, 72)  # patch 3 is row 1, column 1
    want = np.repeat(FREQUENCIES_72, 2)
    assert np.abs(angles[3] / want - 1).max() < 5e-8  # eight digits
    assert (angles[1, 1::2] == 0).all() and (angles[1, 0::2] > 0).all()  # row 0, column 1: even pairs turn
    assert (angles[2, 0::2] == 0).all() and (angles[2, 1::2] > 0).all()


def test_pair_one_turns_with_the_row_only():
    x = np.zeros((6, 16))  # a grid of 2 rows and 3 columns
    x[:, 2] = 1
    turned = functions.rotate_pairs(x, moonvit.rope_angles(2, 3, 16))
    assert np.array_equal(turned[0], turned[1]) and np.array_equal(turned[0], turned[2])
    assert np.abs(turned[3] - turned[0]).max() > 0.1


def test_permuted_heads_under_the_split_rule_give_the_same_scores():
    from kimi_vl_cpp.testing.layout import permutation_k25

    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 15, 24))  # a grid of 3 rows and 5 columns, one head of 24
    order = permutation_k25(1, 24)
    angles, split = moonvit.rope_angles(3, 5, 24), moonvit.split_rope_angles(3, 5, 24)
    want = functions.rotate_pairs(q, angles) @ functions.rotate_pairs(k, angles).T
    got = functions.rotate_pairs(q[:, order], split) @ functions.rotate_pairs(k[:, order], split).T
    assert_near(got, want, 1e-13)
    wrong = functions.rotate_pairs(q, split) @ functions.rotate_pairs(k, split).T  # without the permutation
    assert np.abs(wrong - want).max() > 0.1


def test_permutation_of_a_head_of_72():
    from kimi_vl_cpp.testing.layout import permutation_k25

    order = permutation_k25(1, 72)
    for i in range(18):
        for axis in range(2):
            for e in range(2):
                assert order[axis * 36 + i * 2 + e] == i * 4 + axis * 2 + e


def test_merge_takes_blocks_and_rows_of_blocks():
    x = np.arange(4 * 6)[:, None]  # 4 rows of 6 patches
    merged = projector.merge(x, 4, 6)[:, :, 0]
    assert merged[0].tolist() == [0, 1, 6, 7]
    assert merged[1].tolist() == [2, 3, 8, 9]
    assert merged[3].tolist() == [12, 13, 18, 19]


def test_patches_are_channel_row_column():
    pixels = np.zeros((28, 28, 3), np.uint8)
    pixels[14 + 3, 5, 2] = 255  # blue, row 3, column 5 of the patch at row 1, column 0
    got = moonvit.patches(pixels, 14)
    assert got.shape == (4, 588)
    assert np.argwhere(got == 1).tolist() == [[2, 2 * 196 + 3 * 14 + 5]]
    assert (got == -1).sum() == got.size - 1


def test_the_two_gelus():
    x = np.linspace(-6, 6, 4001)
    gap = np.abs(functions.gelu_tanh(x) - functions.gelu_erf(x))
    assert 4.6e-4 < gap.max() < 4.8e-4
    assert functions.gelu_erf(np.array([1.0]))[0] == pytest.approx(0.8413447460685429, abs=1e-15)


def test_rotary_frequencies_of_the_decoder():
    angles = mla.rope_angles(np.array([0, 1]), 64, 800000.0)
    assert (angles[0] == 0).all()
    assert np.abs(angles[1, :5] / [1, 0.65392575, 0.42761888, 0.279631, 0.18285791] - 1).max() < 2e-7
    assert angles[1, -1] == pytest.approx(1.911532e-6, rel=1e-6)


def test_the_bias_selects_and_does_not_weigh():
    config = {"num_experts_per_tok": 2, "n_routed_experts": 4, "norm_topk_prob": True, "routed_scaling_factor": 2.0}
    scores = np.array([0.9, 0.6, 0.5, 0.2])
    gate = np.log(scores / (1 - scores))[:, None]
    weights = {"gate.weight": gate, "gate.e_score_correction_bias": np.array([0.0, 0.0, 0.3, -1.0])}
    experts, mixed, margins = moe.route(np.ones((1, 1)), weights, "", config)
    assert experts.tolist() == [[0, 2]]  # 0.9 and 0.5 + 0.3, not 0.6
    assert mixed[0] == pytest.approx([2 * 0.9 / 1.4, 2 * 0.5 / 1.4])
    assert margins == pytest.approx([0.2])
