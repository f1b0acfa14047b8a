"""Ollama's Python client: a picture, a stream, JSON, functions."""

import json
import os
from pathlib import Path

from ollama import Client

client = Client(host=os.environ.get("KIMI_VL_URL", "http://127.0.0.1:8000"))
model = client.list().models[0].model
picture = (Path(__file__).parent.parent / "receipt.png").read_bytes()
question = [{"role": "user", "content": "What is the total?", "images": [picture]}]

answer = client.chat(model=model, messages=question, options={"temperature": 0})
print(answer.message.content, answer.eval_count)
pieces = client.chat(model=model, messages=question, options={"temperature": 0}, stream=True)
assert "".join(piece.message.content for piece in pieces) == answer.message.content

schema = {
    "type": "object",
    "properties": {"total": {"type": "number"}},
    "required": ["total"],
    "additionalProperties": False,
}
structured = client.chat(model=model, messages=question, format=schema, options={"temperature": 0, "num_predict": 300})
print(json.loads(structured.message.content))


def get_weather(days: int) -> str:
    """The weather of the next days.

    Args:
        days: how many
    """
    return "sunny"


called = client.chat(model=model, messages=[{"role": "user", "content": "The weather?"}], tools=[get_weather])
print(called.message.tool_calls, called.done_reason)
print(client.generate(model=model, prompt="Hello!", options={"temperature": 0}).response)
print(client.show(model).capabilities)
