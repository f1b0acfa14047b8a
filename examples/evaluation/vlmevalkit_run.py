"""VLMEvalKit's run.py, unchanged: its OCRBench over the questions about the example pictures, so that nothing is
downloaded.

python vlmevalkit_run.py PATH_OF_THE_CHECKOUT
"""

import base64
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

checkout, examples = Path(sys.argv[1]), Path(__file__).parent.parent
questions = json.loads((examples / "questions.json").read_text())

with tempfile.TemporaryDirectory() as work:
    environment = os.environ | {
        "LMUData": work,
        "KIMI_VL_API_BASE": os.environ.get("KIMI_VL_URL", "http://127.0.0.1:8000") + "/v1/chat/completions",
        "KIMI_VL_API_KEY": "none",
    }
    with open(f"{work}/OCRBench_MINI.tsv", "w", newline="") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(["index", "image", "question", "answer", "category"])
        for index, one in enumerate(questions):
            picture = base64.b64encode((examples / one["image"]).read_bytes()).decode()
            table.writerow([index, picture, one["question"], repr(one["answers"]), "Doc-oriented VQA"])
    # By itself it sends 32 requests at once, which wait for each other longer than its timeout on one processor.
    options = ["--data", "OCRBench_MINI", "--model", "api-kimi-vl", "--api-nproc", "1", "--work-dir", f"{work}/out"]
    subprocess.run([sys.executable, "run.py", *options], cwd=checkout, env=environment, check=True)
    scores = sorted(Path(work).glob("out/**/*_score.json"))
    print(f"{len(questions)} questions", scores[0].read_text(), sep="\n")
