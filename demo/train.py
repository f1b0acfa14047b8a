"""Trains the demonstration model on pictures that are rendered while it learns.

    python -m demo.train --run RUN --minutes 150

The run survives interruption: the same command goes on from the last checkpoint. First the eye learns alone what
character, shape and colour lies under every patch, then everything learns together; pictures become harder until half
time; the learning rate falls in the last third. `RUN/log.jsonl` has the curves.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

# Before torch is imported: room for a compiled kernel of every shape, or they are compiled again and again.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .batches import Batch, Feeder, Guide, Prompt, make_batch
from .example import COLOURS, GLYPHS
from .model import Config, KimiVL, TextConfig
from .optim import optimizers
from .tokenizer import Vocabulary
from .vocabulary import make_vocabulary

# One micro-batch each, in turn; a step is as many as --parts says.
MIX = ("words", "receipt", "shapes")
EVAL_TASKS = ("words", "receipt", "shapes")
# In these layers one head is shown what to look at (Batch): without that, which word of the question belongs to which
# place of the picture was not found in an hour.
GUIDED = ((1, "asked"), (2, "named"), (3, "looks"), (3, "counted"), (4, "looks"))
N_EVAL = 64  # pictures a task


class Trainer:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.run = Path(args.run)
        self.run.mkdir(parents=True, exist_ok=True)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(args.seed)
        path = self.run / "tiktoken.model"
        if not path.exists():
            make_vocabulary().save(path)
        self.vocabulary = Vocabulary.load(path)
        self.prompt = Prompt(self.vocabulary)
        config = Config(text=TextConfig(vocab_size=self.vocabulary.size), n_glyphs=len(GLYPHS), n_colours=len(COLOURS))
        self.model = KimiVL(config).to(self.device)
        layers = self.model.language_model["model"].layers
        self.guided = [layers[index] for index, _ in GUIDED]
        for layer in self.guided:
            layer.self_attn.guided = args.guide > 0
        self.optimizers = optimizers(self.model, args.muon_lr, args.adam_lr)
        self.base_rates = [group["lr"] for opt in self.optimizers for group in opt.param_groups]
        self.step, self.batches, self.seconds = 0, 0, 0.0
        self.sums: dict[str, list[float]] = defaultdict(list)
        self.saw_stable = False
        if (self.run / "last.pt").exists():
            self._load(self.run / "last.pt")
        elif args.begin_from:
            self._load(Path(args.begin_from))
            self.seconds = 0.0
        self.eval_batches: list[tuple[str, Batch]] | None = None

    # ----------------------------------------------------------------------------------------------- state on disk

    def _load(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=False)
        self.model.load_state_dict(state["model"])
        for opt, saved in zip(self.optimizers, state["optimizers"], strict=True):
            opt.load_state_dict(saved)
        self.step, self.batches, self.seconds = state["step"], state["batches"], state["seconds"]
        print(f"resumed at step {self.step}, {self.seconds / 60:.1f} min")

    def save(self, name: str = "last.pt") -> None:
        state = {
            "model": self.model.state_dict(),
            "config": self.model.config.to_dict(),
            "optimizers": [opt.state_dict() for opt in self.optimizers],
            "step": self.step,
            "batches": self.batches,
            "seconds": self.seconds,
        }
        partial = self.run / f"{name}.part"
        torch.save(state, partial)
        os.replace(partial, self.run / name)

    def log(self, **values: Any) -> None:
        line = json.dumps({"step": self.step, "minutes": round(self.seconds / 60, 2), **values})
        with (self.run / "log.jsonl").open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    # ---------------------------------------------------------------------------------------------------- schedule

    @property
    def progress(self) -> float:
        return self.seconds / (self.args.minutes * 60)

    @property
    def eye_only(self) -> bool:
        return self.progress < self.args.eye

    def set_rates(self) -> None:
        decay_from = self.args.decay_from
        left = (1 - self.progress) / (1 - decay_from)
        factor = min(1.0, (self.step + 1) / 100, max(0.02, left))
        groups = [group for opt in self.optimizers for group in opt.param_groups]
        for group, base in zip(groups, self.base_rates, strict=True):
            group["lr"] = base * factor
        self.bias_step = 0.005 if self.progress < 0.4 else 0.0005

    # ------------------------------------------------------------------------------------------------------- losses

    def forward(self, batch: Batch, eye_only: bool) -> tuple[Tensor, dict[str, float], Tensor | None]:
        """-> loss, its parts, and for every target whether the likeliest token is it."""
        device = self.device
        pixels = torch.from_numpy(batch.images).to(device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            if eye_only:
                patches, image = self.model.vision_tower(pixels), None
            else:
                patches, image = self.model.see(pixels)
            parts: dict[str, float] = {}
            loss = self._label_loss(patches, batch, parts)
            if image is not None:
                loss = loss + self._label_loss(image, batch, parts, "merged_")
            if eye_only:
                return loss, parts, None
            tokens = torch.from_numpy(batch.tokens).to(device)
            branches = torch.from_numpy(batch.branches).to(device)
            positions = torch.from_numpy(batch.positions).to(device)
            hidden = self.model.hidden(tokens, image, batch.image_at, positions, _mask(branches))
        targets = torch.from_numpy(batch.targets).to(device)
        where = targets >= 0
        logits = self.model.logits(hidden[where])
        answer = F.cross_entropy(logits, targets[where])
        parts["answer"] = float(answer.detach())
        right = torch.zeros_like(where)
        right[where] = logits.detach().argmax(-1) == targets[where]
        loss = answer + self.args.labels * loss
        if self.args.guide:
            loss = loss + self.args.guide * self._guide_loss(batch, parts)
        return loss, parts, right

    def _guide_loss(self, batch: Batch, parts: dict[str, float]) -> Tensor:
        """How little of a guided head's attention lies where it should."""
        total = torch.zeros((), device=self.device)
        for (index, kind), layer in zip(GUIDED, self.guided, strict=True):
            guide: Guide = getattr(batch, kind)
            if not len(guide.at):
                continue
            row, at = torch.from_numpy(guide.at).to(self.device).unbind(1)
            seen = torch.from_numpy(guide.seen).to(self.device)
            scores = layer.self_attn.scores[row, at].float()
            logs = scores.log_softmax(-1)[:, guide.first : guide.first + seen.shape[1]]
            weight = torch.from_numpy(guide.weight).to(self.device)
            loss = -(logs.masked_fill(~seen, -torch.inf).logsumexp(-1) * weight).sum() / weight.sum()
            parts[f"{kind}{index}"] = float(loss.detach())
            total = total + loss
            if kind in self.model.labels:
                bins = self.model.config.n_bins
                spot = (torch.from_numpy(guide.spot).to(self.device) * bins).long().clamp(max=bins - 1)
                logits = self.model.labels[kind](layer.out[row, at]).float().view(-1, bins)
                loss = F.cross_entropy(logits, spot.flatten())
                parts[f"{kind}{index}_spot"] = float(loss.detach())
                total = total + loss
        return total

    def _label_loss(self, seen: Tensor, batch: Batch, parts: dict[str, float], stage: str = "") -> Tensor:
        """How badly the labels of patches are told from what is seen of them. stage: "merged_" of the projector's."""
        device = self.device
        rows, columns = batch.colours.shape[1:]
        x = (torch.arange(columns, device=device) * self.model.config.n_bins // columns).expand(rows, columns)
        y = (torch.arange(rows, device=device) * self.model.config.n_bins // rows)[:, None].expand(rows, columns)
        n = len(batch.glyphs)
        wanted = {
            "glyph": torch.from_numpy(batch.glyphs).to(device).long(),
            "colour": torch.from_numpy(batch.colours).to(device).long()[..., None],
            "x": x[None, ..., None].expand(n, -1, -1, -1),
            "y": y[None, ..., None].expand(n, -1, -1, -1),
        }
        total = torch.zeros((), device=device)
        for name, target in wanted.items():
            if stage:  # in the projector's order: [n, rows / 2, columns / 2, 2, 2, labels of a patch]
                target = target.reshape(n, rows // 2, 2, columns // 2, 2, -1).transpose(2, 3)
            target = target.flatten()
            logits = self.model.labels[stage + name](seen).float().view(len(target), -1)
            loss = F.cross_entropy(logits, target, ignore_index=255, reduction="none")
            weight = torch.where(target == 0, 0.15, 1.0) if name in ("glyph", "colour") else torch.full_like(loss, 0.1)
            weight = torch.where(target == 255, 0.0, weight)
            loss = (loss * weight).sum() / weight.sum().clamp(min=1)
            total = total + loss * {"glyph": 1.0, "colour": 0.4, "x": 0.1, "y": 0.1}[name]
            known = (target != 255) & (target != 0)
            right = (logits.argmax(-1) == target) & known
            parts[stage + name] = float(right.sum() / known.sum().clamp(min=1))
        return total

    # --------------------------------------------------------------------------------------------------------- work

    def train_step(self, feeder: Feeder) -> None:
        began = time.monotonic()
        eye_only = self.eye_only
        feeder.set_hardest(min(1.0, self.progress / self.args.hard_by))
        self.set_rates()
        for _ in range(self.args.parts):
            task, rendering, batch = feeder.next()
            self.batches += 1
            loss, parts, right = self.forward(batch, eye_only)
            (loss / self.args.parts).backward()
            self.sums["rendering"].append(rendering)
            for name, value in parts.items():
                self.sums[f"{task}/{name}"].append(value)
            if right is not None:
                for one_task, is_right in _judged(batch, right.cpu().numpy()):
                    self.sums[f"exact/{one_task}"].append(is_right)
            if not eye_only:
                self._balance()
        for opt in self.optimizers:
            for group in opt.param_groups:
                torch.nn.utils.clip_grad_norm_(group["params"], 1.0 if isinstance(opt, torch.optim.AdamW) else 1e9)
            opt.step()
            opt.zero_grad(set_to_none=True)
        self.step += 1
        self.seconds += min(time.monotonic() - began, 10.0)  # a stopped process does not learn

    def _balance(self) -> None:
        for moe in self.model.routers():
            load = moe.load.float()
            moe.gate.e_score_correction_bias += self.bias_step * torch.sign(load.mean() - load)

    def report(self, began: float, steps: int) -> None:
        values = {name: round(float(np.mean(found)), 3) for name, found in sorted(self.sums.items())}
        pictures = steps * self.args.parts * self.args.batch
        self.sums.clear()
        load = [moe.load.float() for moe in self.model.routers() if hasattr(moe, "load")]
        values["max_load"] = round(max((float(one.max() / one.mean()) for one in load), default=0), 2)
        self.log(rate=round(pictures / max(time.monotonic() - began, 1e-9), 1), **values)

    @torch.no_grad()
    def evaluate(self) -> None:
        """Exact answers on held-out words and fonts, all difficulties."""
        if self.eval_batches is None:
            rng = np.random.default_rng(977)
            self.eval_batches = [
                (task, make_batch(rng, self.prompt, task, 16, 1.0, "held_out", 0.0))
                for task in EVAL_TASKS
                for _ in range(N_EVAL // 16)
            ]
        self.model.eval()
        found: dict[str, list[float]] = defaultdict(list)
        for _, batch in self.eval_batches:
            _, parts, right = self.forward(batch, False)
            assert right is not None
            found["glyph"].append(parts["glyph"])
            for task, is_right in _judged(batch, right.cpu().numpy()):
                found[task].append(is_right)
        self.model.train()
        self.log(held_out={task: round(float(np.mean(values)), 3) for task, values in sorted(found.items())})

    def run_all(self) -> None:
        args = self.args
        feeder = Feeder(self.vocabulary, MIX, args.batch, args.seed, self.batches)
        try:
            saved = evaluated = self.seconds
            began, steps = time.monotonic(), 0
            while self.progress < 1:
                if not self.saw_stable and self.progress >= args.decay_from:
                    self.saw_stable = True
                    if not (self.run / "stable.pt").exists():
                        self.save("stable.pt")
                self.train_step(feeder)
                steps += 1
                if steps == args.report:
                    self.report(began, steps)
                    began, steps = time.monotonic(), 0
                if self.seconds - saved > 120:
                    self.save()
                    saved = self.seconds
                if self.seconds - evaluated > args.evaluate * 60 and not self.eye_only:
                    self.evaluate()
                    evaluated = self.seconds
            self.save()
            self.evaluate()
        finally:
            feeder.close()


def _mask(branches: Tensor) -> Tensor:
    """[B, L] -> [B, 1, L, L], 0 where a token sees another and a large negative number elsewhere."""
    n = branches.shape[1]
    earlier = torch.ones(n, n, dtype=torch.bool, device=branches.device).tril()
    same = (branches[:, None, :] == 0) | (branches[:, None, :] == branches[:, :, None])
    seen = earlier & same
    return torch.where(seen, 0.0, -1e4).to(torch.bfloat16)[:, None]


def _judged(batch: Batch, right: np.ndarray) -> list[tuple[str, float]]:
    return [(task, float(right[b, begin:end].all())) for b, begin, end, task in batch.answers]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="folder of the run: checkpoints and log")
    parser.add_argument("--begin-from", default="", help="checkpoint of another run whose weights are gone on from")
    parser.add_argument("--minutes", type=float, default=150, help="of training, pauses not counted")
    parser.add_argument("--batch", type=int, default=16, help="pictures of a micro-batch")
    parser.add_argument("--parts", type=int, default=3, help="micro-batches of a step")
    parser.add_argument("--eye", type=float, default=0.12, help="share of the time in which only the eye learns")
    parser.add_argument("--hard-by", type=float, default=0.5, help="share of the time until full variety")
    parser.add_argument("--decay-from", type=float, default=0.65, help="share of the time after which the rate falls")
    parser.add_argument("--labels", type=float, default=0.3, help="weight of the eye's labels beside the answers")
    parser.add_argument("--guide", type=float, default=0.2, help="weight of where to look beside the answers")
    parser.add_argument("--muon-lr", type=float, default=4e-3)
    parser.add_argument("--adam-lr", type=float, default=2e-3)
    parser.add_argument("--evaluate", type=float, default=5, help="minutes between evaluations")
    parser.add_argument("--report", type=int, default=20, help="steps between lines of the log")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    Trainer(args).run_all()


if __name__ == "__main__":
    main()
