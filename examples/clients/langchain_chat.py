"""LangChain's ChatOpenAI: a picture, a stream, structured output, functions."""

import base64
import os
from pathlib import Path
from typing import Literal

from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

url = os.environ.get("KIMI_VL_URL", "http://127.0.0.1:8000") + "/v1"
chat = ChatOpenAI(base_url=url, api_key="none", model="kimi-vl", temperature=0, max_tokens=300)
picture = base64.b64encode((Path(__file__).parent.parent / "receipt.png").read_bytes()).decode()
question = HumanMessage(
    [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
        {"type": "text", "text": "What is the total?"},
    ]
)

answer = chat.invoke([question])
print(answer.content, answer.usage_metadata)
assert "".join(piece.content for piece in chat.stream([question])) == answer.content


class Total(BaseModel):
    """What a receipt says."""

    total: float


print(chat.with_structured_output(Total).invoke([question]))


@tool
def get_weather(city: Literal["Rome", "Oslo"]) -> str:
    """The weather of a city."""
    return "sunny"


called = chat.bind_tools([get_weather], tool_choice="required", parallel_tool_calls=False).invoke("The weather?")
print(called.tool_calls)
assert called.tool_calls[0]["name"] == "get_weather"
