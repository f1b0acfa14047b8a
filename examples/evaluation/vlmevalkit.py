"""VLMEvalKit's wrapper of a served Kimi-VL, from a checkout of VLMEvalKit, without the rest of the kit.

python vlmevalkit.py PATH_OF_THE_CHECKOUT
"""

import os
import sys
import types
from pathlib import Path

checkout = Path(sys.argv[1])
os.environ["KIMI_VL_API_BASE"] = os.environ.get("KIMI_VL_URL", "http://127.0.0.1:8000") + "/v1/chat/completions"
for name in ("vlmeval", "vlmeval.api"):  # their __init__ files import every model that the kit knows
    package = types.ModuleType(name)
    package.__path__ = [str(checkout / name.replace(".", "/"))]
    sys.modules[name] = package

from vlmeval.api.kimivl_api import KimiVLAPI  # noqa: E402

receipt = Path(__file__).parent.parent / "receipt.png"
question = [dict(type="image", value=str(receipt)), dict(type="text", value="What is the total?")]
answer = KimiVLAPI(temperature=0, max_tokens=64, retry=1).generate(question)
print(repr(answer))
assert answer and "Failed" not in answer

# The kit's way to skip the reasoning is an empty one that is to be continued; for a model that reasons.
os.environ["THINKING_SKIPPED"] = "1"
status, answer, response = KimiVLAPI(temperature=0, max_tokens=64, retry=1).generate_inner(question)
print(status, repr(answer))
assert status == 0 and "reasoning_content" not in response.json()["choices"][0]["message"]
