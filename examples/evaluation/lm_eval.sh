#!/bin/sh
# lm-eval: a loglikelihood task and a generation task over completions, a generation task over chat. The tasks are made here,
# so that nothing is downloaded; the tokenizer is the server's own.
set -eu
url=${KIMI_VL_URL:-http://127.0.0.1:8000}
tasks=$(mktemp -d)
trap 'rm -rf "$tasks"' EXIT
cat > "$tasks/questions.jsonl" <<DATA
{"question": "2 + 2 =", "choices": ["4", "5"], "answer": 0}
{"question": "The opposite of hot is", "choices": ["warm", "cold"], "answer": 1}
{"question": "Grass is", "choices": ["green", "red"], "answer": 0}
DATA
dataset="dataset_path: json
dataset_kwargs: {data_files: {test: $tasks/questions.jsonl}}
test_split: test
doc_to_text: '{{question}}'"
cat > "$tasks/choice.yaml" <<TASK
task: choice
$dataset
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc}]
TASK
cat > "$tasks/write.yaml" <<TASK
task: write
$dataset
output_type: generate_until
doc_to_target: '{{choices[answer]}}'
generation_kwargs: {until: ["\n"], max_gen_toks: 16, do_sample: false}
metric_list: [{metric: exact_match}]
TASK
cat > "$tasks/perplexity.yaml" <<TASK
task: perplexity
$dataset
output_type: loglikelihood_rolling
doc_to_target: '{{question}} {{choices[answer]}}'
metric_list: [{metric: word_perplexity}]
TASK
model=$(curl -sf "$url/v1/models" | sed 's/.*"id":"\([^"]*\)".*/\1/')
run() { lm_eval --include_path "$tasks" "$@"; }
run --model local-completions --tasks choice,write,perplexity \
  --model_args "base_url=$url/v1/completions,model=$model,tokenizer_backend=remote,num_concurrent=4,max_length=1024"
run --model local-chat-completions --tasks write --apply_chat_template \
  --model_args "base_url=$url/v1/chat/completions,model=$model,num_concurrent=4"
