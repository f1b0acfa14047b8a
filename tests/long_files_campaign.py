"""Documents and videos of full length through the command line and the built-in model: kills and memory.

    python tests/long_files_campaign.py [--pages 50] [--minutes 10] [--kills 3]

A PDF of drawn prices is read, and a video split into scenes, once undisturbed and once killed (kill -9) and taken up
again. Fails when the two results differ by a byte, when a page or part is computed twice, or when all pages, or frames
all over the video, take more than 200 MB above one. The tests kill a short run with the same code.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import documents
import videos

MOST_MORE = 200 << 10  # KiB
PROGRAM = [sys.executable, "-P", "-m", "kimi_vl_cpp"]
PAGES = """
import resource, sys
from kimi_vl_cpp import Document, KimiVL
with KimiVL.builtin(n_threads=1) as model, Document(sys.argv[1]) as document:
    answer = model.chat("What is the price?", document.pages(sys.argv[2]), image_patches=96, max_new_tokens=1)
    print(answer.usage.image_tokens, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
TURNS = """
import resource, sys
from kimi_vl_cpp import Document, KimiVL
with KimiVL.builtin(n_threads=1) as model, Document(sys.argv[1]) as document:
    talk = model.conversation()
    first = talk.ask("What is the price?", documents=[document] if sys.argv[2] == "all" else [],
                     images=[] if sys.argv[2] == "all" else document.pages("1"), image_patches=96, max_new_tokens=1)
    again = talk.ask("And now?", max_new_tokens=1)
    print(again.usage.image_tokens, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
FRAMES = """
import resource, sys
from kimi_vl_cpp import KimiVL
with KimiVL.builtin(n_threads=1) as model:
    found = model.frames(sys.argv[1], n=int(sys.argv[2]), patches=40)
    answer = model.chat("What is this?", found, max_new_tokens=1)
    print(answer.usage.image_tokens, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def read_command(document: Path) -> list[str]:
    """`read` of a document of prices, without its output."""
    question = document.with_name("question.txt")
    question.write_text("What is the price?")
    return [*PROGRAM, "read", str(document), "--prompt-file", str(question), "-t", "1", "--image-patches", "96"]


def scenes_command(video: Path, fps: float) -> list[str]:
    """`scenes` of a video, without its output."""
    return [*PROGRAM, "scenes", str(video), "--image-patches", "40", "--fps", str(fps), "-t", "1"]


def killed_and_taken_up(
    command: Sequence[str], folder: Path, suffix: str, kills: Sequence[int], n_records: int
) -> list[str]:
    """Runs a command with a journal undisturbed, then killed once the journal has more than each of `kills` records,
    then to its end. Asserts that the result is the same and that every record was made once. Returns what was said
    by the last run."""
    whole, out = folder / f"whole{suffix}", folder / f"out{suffix}"
    journal = Path(f"{out}.journal")
    first = subprocess.run([*command, "-o", str(whole)], capture_output=True, text=True)
    assert whole.exists(), first.stderr
    for n in kills:
        quiet = subprocess.DEVNULL
        process = subprocess.Popen([*command, "-o", str(out)], stdout=quiet, stderr=quiet)
        while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") <= n):
            time.sleep(0.005)
        process.kill()
        process.wait()
    kept = journal.read_bytes()
    kept = kept[: kept.rindex(b"\n") + 1]
    assert kept.count(b"\n") > kills[-1]
    again = subprocess.run([*command, "-o", str(out)], capture_output=True, text=True)
    assert out.read_bytes() == whole.read_bytes(), again.stderr
    assert journal.read_bytes().startswith(kept), "what was in the journal was written again"
    records = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    assert [record["page"] for record in records] == list(range(1, n_records + 1))
    return again.stderr.splitlines()


def memory(program: str, file: Path, few: str, many: str) -> tuple[list[int], list[int]]:
    """[positions, KiB at most] of a program with few and with many pictures of a file, each in a process of its own."""
    found = []
    for which in (few, many):
        done = subprocess.run([sys.executable, "-P", "-c", program, str(file), which], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append([int(number) for number in done.stdout.split()])
    assert found[1][1] - found[0][1] <= MOST_MORE
    return found[0], found[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--kills", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        document, video = folder / "prices.pdf", folder / "talk.mp4"
        document.write_bytes(
            documents.pdf([f"${n}.{n:02d}" for n in range(1, given.pages + 1)], (168, 112), font_size=30)
        )
        n_frames = round(given.minutes * 120)
        shown = (videos.coded(index, ground=(40, 120, 200, 250)[index // 60 % 4]) for index in range(n_frames))
        video.write_bytes(videos.video(shown, fps=2, gop=40))

        kills = sorted({1 + (given.pages - 2) * n // given.kills for n in range(given.kills)})
        killed_and_taken_up(read_command(document), folder, ".md", kills, given.pages)
        text = (folder / "out.md").read_text()
        right = sum(f"<!-- page {n} -->\n\n${n}.{n:02d}\n" in text for n in range(1, given.pages + 1))
        print(
            f"read: {given.pages} pages, killed behind page {kills}: the same bytes, {right} prices right", flush=True
        )

        fps = 0.2
        n_parts = -(-round(given.minutes * 60 * fps) // 32)
        killed_and_taken_up(scenes_command(video, fps), folder, ".json", [1], n_parts)
        print(f"scenes: {given.minutes:g} min in {n_parts} parts, killed behind part 1: the same bytes", flush=True)

        for what, program, file, few, many in (
            ("one request with all pages", PAGES, document, "1", f"-{given.pages}"),
            ("a conversation about all pages", TURNS, document, "one", "all"),
            ("one request with 100 frames", FRAMES, video, "1", "100"),
        ):
            one, all_ = memory(program, file, few, many)
            more = (all_[1] - one[1]) / 1024
            print(f"{what}: {one[0]} -> {all_[0]} positions, {more:.0f} MiB more than one", flush=True)


if __name__ == "__main__":
    main()
