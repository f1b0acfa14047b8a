#!/bin/sh
# The command `llm`, with a model that its file of models names: text, a picture, a schema.
set -eu
url=${KIMI_VL_URL:-http://127.0.0.1:8000}
LLM_USER_PATH=$(mktemp -d)
export LLM_USER_PATH
trap 'rm -rf "$LLM_USER_PATH"' EXIT
cat > "$LLM_USER_PATH/extra-openai-models.yaml" <<MODELS
- model_id: kimi
  model_name: kimi-vl
  api_base: "$url/v1"
  api_key_name: kimi
  vision: true
  supports_schema: true
  supports_tools: true
- model_id: kimi-responses
  model_name: kimi-vl
  api_base: "$url/v1"
  api_key_name: kimi
  vision: true
  responses: true
MODELS
llm keys set kimi --value none
llm -m kimi 'Hello!' -o temperature 0
llm -m kimi 'What is the total?' -a "$(dirname "$0")/../receipt.png" -o temperature 0 --no-stream
llm -m kimi 'What is the total?' -a "$(dirname "$0")/../receipt.png" --schema 'total float' -o temperature 0
llm -m kimi-responses 'What is the total?' -a "$(dirname "$0")/../receipt.png" -o temperature 0
