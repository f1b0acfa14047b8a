#!/bin/sh
# lmms-eval: the questions about the example pictures, through its wrapper of OpenAI's chat completions. The task is made here,
# so that nothing is downloaded.
set -eu
url=${KIMI_VL_URL:-http://127.0.0.1:8000}
examples=$(cd "$(dirname "$0")/.." && pwd)
tasks=$(mktemp -d)
trap 'rm -rf "$tasks"' EXIT
cat > "$tasks/pictures.yaml" <<TASK
task: pictures
dataset_path: json
dataset_kwargs: {data_files: {test: $examples/questions.json}}
test_split: test
output_type: generate_until
doc_to_visual: !function questions.picture
doc_to_text: !function questions.text
doc_to_target: '{{answers[0]}}'
generation_kwargs: {max_new_tokens: 16, temperature: 0, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
TASK
cat > "$tasks/questions.py" <<CODE
from PIL import Image


def picture(doc):
    return [Image.open("$examples/" + doc["image"]).convert("RGB")]


def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]
CODE
model=$(curl -sf "$url/v1/models" | sed 's/.*"id":"\([^"]*\)".*/\1/')
# By itself it sends 32 requests at once and waits 10 seconds for each: far too short for a large model on a processor.
OPENAI_API_KEY=none lmms-eval --model openai --include_path "$tasks" --tasks pictures --batch_size 1 \
  --model_args "base_url=$url/v1,model=$model,num_concurrent=1,timeout=36000" --output_path "$tasks/out"
test -n "$(find "$tasks/out" -name '*results.json')"  # it exits with 0 when it fails, too
