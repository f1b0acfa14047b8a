#!/bin/sh
# A question about a picture, whole and as a stream.
set -eu
url=${KIMI_VL_URL:-http://127.0.0.1:8000}
picture=$(base64 -w0 "$(dirname "$0")/../receipt.png")
body() {
  printf '{"stream": %s, "temperature": 0, "messages": [{"role": "user", "content": [
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,%s"}},
    {"type": "text", "text": "What is the total?"}]}]}' "$1" "$picture"
}
body false | curl -sSf "$url/v1/chat/completions" -d @- | grep -o '"content":"[^"]*"'
body true | curl -sSfN "$url/v1/chat/completions" -d @- | tail -n 3
