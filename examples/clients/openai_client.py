"""OpenAI's Python client: a picture, a stream, an answer parsed into a type, functions, Responses."""

import base64
import json
import os
from pathlib import Path

from openai import OpenAI
from pydantic import BaseModel

client = OpenAI(base_url=os.environ.get("KIMI_VL_URL", "http://127.0.0.1:8000") + "/v1", api_key="none")
model = client.models.list().data[0].id
picture = base64.b64encode((Path(__file__).parent.parent / "receipt.png").read_bytes()).decode()
question = [
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
            {"type": "text", "text": "What is the total?"},
        ],
    }
]

answer = client.chat.completions.create(model=model, messages=question, temperature=0)
print(answer.choices[0].message.content, answer.usage)

pieces = client.chat.completions.create(
    model=model, messages=question, temperature=0, stream=True, stream_options={"include_usage": True}
)
text = "".join(chunk.choices[0].delta.content or "" for chunk in pieces if chunk.choices)
assert text == answer.choices[0].message.content


class Total(BaseModel):
    total: float
    paid: bool


parsed = client.chat.completions.parse(
    model=model, messages=question, response_format=Total, temperature=0, max_tokens=300
)
print(parsed.choices[0].message.parsed)

weather = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}
called = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "What is the weather in Rome?"}],
    tools=[{"type": "function", "function": {"name": "get_weather", "parameters": weather, "strict": True}}],
    tool_choice="required",
    parallel_tool_calls=False,
    max_tokens=300,
    temperature=0,
)
call = called.choices[0].message.tool_calls[0]
print(call.function.name, json.loads(call.function.arguments))

response = client.responses.create(model=model, input="Hello!", temperature=0)
print(response.status, response.output_text)
