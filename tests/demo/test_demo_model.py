"""The PyTorch model of demo/ and the engine compute the same, through the converter. Skipped without PyTorch."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2]))  # demo/ is not installed; the package is found before it
torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytest.importorskip("regex")

from demo.batches import Prompt, collate  # noqa: E402
from demo.example import Example, Turn  # noqa: E402
from demo.export import export  # noqa: E402
from demo.model import Config, KimiVL, TextConfig, VisionConfig  # noqa: E402
from demo.optim import orthogonal  # noqa: E402
from demo.tokenizer import Vocabulary, train  # noqa: E402
from kimi_vl_cpp import _core  # noqa: E402
from kimi_vl_cpp.quantize import quantize  # noqa: E402
from kimi_vl_cpp.text.tokenizer import Tokenizer  # noqa: E402

TEXTS = ["X You are a helpful assistant", "What is the total?", "How much is the bagel?"]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return train(TEXTS * 3, 80)


@pytest.fixture(scope="module")
def model(vocabulary: Vocabulary) -> KimiVL:
    torch.manual_seed(4)
    vision = VisionConfig(hidden_size=96, intermediate_size=128, num_hidden_layers=2)
    text = TextConfig(vocab_size=vocabulary.size, num_hidden_layers=3)
    made = KimiVL(Config(vision, text)).eval()
    for router in made.routers():
        router.gate.e_score_correction_bias.normal_(0, 0.1)
    return made


@pytest.fixture(scope="module")
def exported(model: KimiVL, vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    export(model, vocabulary, folder / "hf")
    quantize(folder / "hf", folder / "model.gguf", "F32")
    return folder / "model.gguf"


def test_pytorch_and_the_engine_agree_on_a_picture_and_a_text(
    model: KimiVL, vocabulary: Vocabulary, exported: Path
) -> None:
    """1e-4, the bar of the reference vectors for F32 text; 1e-5 for the picture."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (84, 140, 3), dtype=np.uint8)
    engine = _core.Engine(str(exported))
    with torch.no_grad():
        patches, image = model.see(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1)
        ids = rng.integers(0, vocabulary.n_base, 30).astype(np.int32)
        n = image.shape[1]
        tokens = torch.from_numpy(np.concatenate([ids[:8], np.zeros(n, np.int32), ids[8:]]).astype(np.int64))[None]
        length = tokens.shape[1]
        causal = torch.full((length, length), -1e9).triu(1)[None, None]
        hidden = model.hidden(tokens, image, 8, torch.arange(length)[None], causal)
        wanted = model.logits(hidden)[0].numpy()
    assert distance(engine.vision_tower(pixels), patches[0].numpy()) < 1e-5
    seen = engine.encode_image(pixels)
    assert distance(seen, image[0].numpy()) < 1e-5
    found = _core.Session(engine, 256).prefill([ids[:8], seen, ids[8:]], logits="all")
    assert found is not None
    assert distance(found, wanted) < 1e-4


def test_pictures_in_bf16_err_less_than_pytorch_in_bf16(
    model: KimiVL, exported: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The precision in which checkpoints of the family are meant to be run: everything is rounded there, here only what
    is multiplied. Instruction sets without bf16 stay exact."""
    file = tmp_path_factory.mktemp("demo") / "q8.gguf"
    quantize(exported, file, "Q8_0", vision="F16")
    engine = _core.Engine(str(file))
    half = copy.deepcopy(model).to(torch.bfloat16)

    def as_bf16(_: object, given: tuple[object, ...]) -> tuple[object, ...]:
        return tuple(x.bfloat16() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in given)

    for module in half.modules():
        module.register_forward_pre_hook(as_bf16)
    for seed in range(3):
        pixels = np.random.default_rng(seed).integers(0, 256, (84, 140, 3), dtype=np.uint8)
        scaled = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            wanted = model.see(scaled)[1][0].numpy()
            rounded = half.see(scaled.bfloat16())[1][0].float().numpy()
        assert distance(engine.encode_image(pixels), wanted) < distance(rounded, wanted) < 3e-2


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def test_texts_get_the_tokens_that_the_package_gives_them(vocabulary: Vocabulary, exported: Path) -> None:
    tokenizer = Tokenizer.from_gguf(_core.GGUFFile(str(exported)))
    for text in [*TEXTS, "$4.20", "Zwölf Ölfässer, 12:30", " leading", "a  b\n"]:
        assert vocabulary.encode(text) == tokenizer.encode(text)
    assert tokenizer.special["<|im_end|>"] == vocabulary.special["<|im_end|>"]


def test_branches_see_the_picture_and_themselves_only(model: KimiVL, vocabulary: Vocabulary) -> None:
    """A question's logits are the same alone and beside another; in a conversation they are not."""
    from demo.train import _mask

    prompt = Prompt(vocabulary)
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (56, 56, 3), dtype=np.uint8)
    turns = [Turn("What is it?", "abc", "words"), Turn("How much?", "$1", "words")]

    def logits(asked: list[Turn], as_chat: bool) -> np.ndarray:
        example = Example(pixels, np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4), np.uint8), asked)
        batch = collate([example], prompt, [as_chat])
        with torch.no_grad():
            _, image = model.see(torch.from_numpy(batch.images).permute(0, 3, 1, 2).float() / 127.5 - 1)
            bias = _mask(torch.from_numpy(batch.branches)).float()
            tokens, positions = torch.from_numpy(batch.tokens), torch.from_numpy(batch.positions)
            hidden = model.hidden(tokens, image, batch.image_at, positions, bias)
        _, begin, end, _ = batch.answers[-1]
        return model.logits(hidden)[0, begin:end].detach().numpy()

    alone = logits(turns[1:], False)
    assert distance(logits(turns, False), alone) < 1e-5
    assert distance(logits(turns, True), alone) > 1e-3


def test_muons_step_has_singular_values_near_one() -> None:
    """The published polynomial maps them to between about 0.7 and 1.2; bfloat16 adds a little."""
    torch.manual_seed(0)
    for shape in ((40, 90), (90, 40), (3, 32, 64)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)).float())
        assert values.min() > 0.5 and values.max() < 1.35
