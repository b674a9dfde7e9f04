"""What does a user feel?  From `pip install` to the first sample; then the server, learning, text and going on.

The server (apps.serve) has `nano` with random weights: what it writes means nothing, and takes as long as any text. Its
clients are threads of this process and share its processor. Beside it transformers generates with a Llama of as many
parameters, one batch for all that ask.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness import ROOT, THREADS, Failed, Job, Others, race, take_turns
from benchmarks.report import Result, Table
from benchmarks.start import seconds
from benchmarks.worker import Contender

if TYPE_CHECKING:
    from benchmarks.__main__ import Options

PROMPT, WRITTEN = 32, 128  # tokens of a request and of its answer
CLIENTS = 1, 8, 32
TAUGHT = 1024  # tokens that every session learns from
FILES = 100  # that the text to be indexed is in, a megabyte each

# From nothing to a sample -----------------------------------------------------------------------------------


def installing(table: Table, env: dict[str, str]) -> None:
    """A fresh environment, what the root needs, and the two shortest ways to a sample, no kernel compiled yet."""
    with tempfile.TemporaryDirectory() as scratch:
        python = str(Path(scratch) / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python")
        take = partial(seconds, **env)
        take([sys.executable, "-m", "venv", str(Path(scratch) / "venv")])
        installed = take([python, "-m", "pip", "install", "-q", "-r", "requirements.txt"])
        ways = {"train.py --preset tiny": ["train.py", "--preset", "tiny", "--out", str(Path(scratch) / "run")],
                "apps.chat --complete (the run that ships)": ["-m", "apps.chat", "--complete", "--max-tokens", "100"]}
        table.rows.append(["`pip install -r requirements.txt`, from the index and the cache that pip has", installed])
        for way, command in ways.items():
            text = "import numpy as np\n" if "chat" in way else ""
            sample = take([python, *command], text, NUMBA_CACHE_DIR=str(Path(scratch) / way[:5]))
            table.rows += [[f"… then `python {way}`, cold, until it has ended", sample],
                           ["both: from `pip install` to the first sample", installed + sample]]


def resuming(table: Table, preset: str, env: dict[str, str], rounds: int) -> None:
    """From `train.py --resume` to the log line of its first new step, warm."""
    with tempfile.TemporaryDirectory() as scratch:
        run, found = Path(scratch) / "run", []
        seconds([sys.executable, "train.py", "--preset", preset, "--steps", "1", "--out", str(run)], **env)
        for i in range(rounds):
            again = shutil.copytree(run, Path(scratch) / str(i))
            started = time.perf_counter()
            process = subprocess.Popen([sys.executable, "train.py", "--resume", str(again), "--steps", "2"], cwd=ROOT,
                                       env=os.environ | env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while '"step": 2' not in (again / "log.jsonl").read_text(encoding="utf-8"):
                if process.poll() is not None:
                    raise Failed(f"train.py --resume ended with {process.returncode}")
                time.sleep(0.005)
            found.append(time.perf_counter() - started)
            process.wait()
    table.rows.append([f"`python train.py --resume` of `{preset}`, warm, until its first new step is done",
                       float(np.median(found))])


# The server -------------------------------------------------------------------------------------------------


class Server:
    """`python -m apps.serve`, in a process of its own."""

    def __init__(self, run: Path, env: dict[str, str], *flags: str):
        command = [sys.executable, "-m", "apps.serve", str(run), "--port", "0", "--quiet", "--sessions", "0", *flags]
        self.process = subprocess.Popen(command, cwd=ROOT, env=os.environ | env, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, encoding="utf-8")
        assert self.process.stdout and self.process.stderr
        said = self.process.stdout.readline()
        if " at http://" not in said:
            raise Failed(f"apps.serve: {self.process.stderr.read().strip() or said}")
        self.port = int(said.split(" at http://")[1].split()[0].rsplit(":")[-1])

    def post(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """What it answers, event by event if it is asked to stream."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)) as connection:
            connection.request("POST", f"/v1/{path}", json.dumps(body), {"content-type": "application/json"})
            answer = connection.getresponse()
            if answer.status != 200:
                raise Failed(f"apps.serve: {path} answers {answer.status}: {answer.read()[:300]!r}")
            if not body.get("stream"):
                return [json.loads(answer.read())]
            lines = [(time.perf_counter(), line) for line in answer if line.startswith(b"data: {")]
        return [{"at": at, **json.loads(line[6:])} for at, line in lines]

    def write(self, started: float = 0.0) -> tuple[int, float]:
        """Tokens of one streamed answer, and when the first came, after `started`."""
        events = self.post("completions", prompt="import numpy as np\n".ljust(PROMPT), max_tokens=WRITTEN, stream=True,
                           stream_options={"include_usage": True}, logit_bias={"0": -100})  # 0 would end it
        if "usage" not in events[-1]:
            raise Failed(f"apps.serve: an answer ends with {events[-1]}")
        return events[-1]["usage"]["completion_tokens"], events[0]["at"] - started

    def clients(self, many: int) -> tuple[float, float]:
        """Tokens per second of so many at once, and the median time to the first token."""
        started = time.perf_counter()
        with ThreadPoolExecutor(many) as pool:
            tokens, first = zip(*pool.map(self.write, [started] * many), strict=True)
        return sum(tokens) / (time.perf_counter() - started), float(np.median(first))

    def read(self, tokens: int, session: str = "", learn: bool = False) -> float:
        """Seconds to read so much text."""
        started, text = time.perf_counter(), (ROOT / "autograd.py").read_text(encoding="ascii", errors="ignore")
        [said] = self.post("read", text=(text * (1 + tokens // len(text)))[:tokens], learn=learn,
                           **({"user": session} if session else {}))
        if said["learned"] != learn:
            raise Failed(f"apps.serve: a text was read and learned is {said['learned']}")
        return time.perf_counter() - started

    def resident(self) -> int:
        """Bytes of memory that it has."""
        import psutil

        return int(psutil.Process(self.process.pid).memory_info().rss)

    def close(self) -> None:
        self.process.terminate()
        self.process.communicate()


def serving(run: Path, env: dict[str, str], options: Options, tables: list[Table]) -> None:
    """Fill the tables of writing, of reading and of sessions."""
    writing, reading, keeping = tables
    sessions, rounds = (4, 1) if options.small else (32, 3)
    for flags in ([], ["--fast"]):
        with contextlib.closing(Server(run, env, *flags)) as server:
            server.clients(8)
            for many in CLIENTS:
                rate, first = np.median([server.clients(many) for _ in range(rounds)], axis=0)
                writing.rows.append([" ".join(["apps.serve", *flags]), many, float(rate), float(rate / many),
                                     1000 * float(first)])
    with tempfile.TemporaryDirectory() as kept, contextlib.closing(
            Server(run, env, "--session-folder", kept)) as server:
        size = 2048 if options.small else 16384
        for learn in (False, True):
            server.read(TAUGHT, "first", learn)
            took = np.median([server.read(size, "first", learn) for _ in range(rounds)])
            reading.rows.append(["on" if learn else "off", float(size / took)])
        before = server.resident()
        for i in range(sessions):
            server.read(TAUGHT, f"session {i}", True)
        after = server.resident()
        files = [path.stat().st_size for path in Path(kept).rglob("*.npz")]
        keeping.rows.append([before / 1e6, (after - before) / 1e6 / sessions, float(np.mean(files)) / 1e6])


def theirs(parameters: int, width: int, layers: int) -> Contender:
    """transformers' `generate`, of a Llama of about so many parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    hidden = ((parameters - 256 * width) // layers - 4 * width * width) // (3 * width)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=256, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=hidden,
        tie_word_embeddings=True)).eval()

    @torch.inference_mode()
    def step(many: int) -> int:
        asked = torch.full((many, PROMPT), 32)
        return int(model.generate(asked, attention_mask=torch.ones_like(asked), do_sample=True, pad_token_id=0,
                                  max_new_tokens=WRITTEN, min_new_tokens=WRITTEN).numel())
    return Contender(step, None, {"parameters": sum(p.numel() for p in model.parameters())})


# Text -------------------------------------------------------------------------------------------------------


def write_text(folder: Path, size: int) -> None:
    """Files of so many bytes, each another, and shards of as many tokens as that is, at 2.85 bytes each."""
    from data import Corpus

    text, rng = Corpus.default().split("train"), np.random.default_rng(0)
    for name in ("text", "shards"):
        (folder / name).mkdir()
    for i in range(FILES):
        at = rng.integers(len(text) - 10_000, size=max(size // 10_000, 1))
        (folder / "text" / f"{i:03}.txt").write_bytes(
            b"".join(text.read(a, a + min(size, 10_000)).tobytes() for a in at).replace(b"\0", b"\n"))

    def described(file: str) -> dict[str, str]:
        return {"file": file, "sha256": hashlib.sha256((folder / "shards" / file).read_bytes()).hexdigest()}
    shards, tokens = [], int(FILES * size / 2.85 / 10)
    for i, split in enumerate(["train"] * 9 + ["validation"]):
        np.save(folder / "shards" / f"{i}.npy", rng.integers(257, size=tokens).astype("<u2"))
        shards.append({**described(f"{i}.npy"), "split": split, "source": "text", "tokens": tokens, "documents": 1,
                       "bytes": FILES * size // 10})
    words = {"name": "bytes", "kind": "bpe", "end": 0, "tokens": ["", *map(chr, range(256))]}
    (folder / "shards" / "vocabulary.json").write_text(json.dumps(words), encoding="utf-8")
    (folder / "shards" / "index.json").write_text(json.dumps({
        "format": "nested-learning shards", "version": 1, "dtype": "uint16", "shards": shards,
        "vocabulary": {**described("vocabulary.json"), "name": "bytes", "size": 257, "end": 0},
        "sources": {"text": {"weight": 1}}}), encoding="utf-8")


def reading(folder: str) -> Contender:
    """Text or shards: to open them, as training does, and then to read an epoch, segment by segment."""
    from data import Corpus, Segments
    from shards import Shards, is_shards

    opened: list[Segments] = []

    def step(work: str) -> int:
        if work == "index":
            corpus = Shards(folder) if is_shards(folder) else Corpus.from_paths(folder)
            corpus.manifest()
            opened[:] = [Segments(corpus.split("train"), 4, 512)]
            return len(next(opened[0]))
        epoch, read = opened[0].epoch, 0
        while opened[0].epoch == epoch:
            read += next(opened[0]).size
        return read
    return Contender(step)


def text_read(size: int, options: Options) -> Table:
    """Seconds, rates and memory of indexing and of reading."""
    table = Table(f"{FILES * size / 1e6:.0f} MB of text", ["text", "work", "seconds", "MB/s", "most memory, MB"])
    with tempfile.TemporaryDirectory() as folder:
        write_text(Path(folder), size)
        for kind, name in (("text", f"{FILES} files"), ("shards", "10 shards, 2.85 bytes a token")):
            job = Job("benchmarks.felt:reading", {"folder": str(Path(folder) / kind)})
            with race({work: Job(job.make, job.arguments, {"work": work}) for work in ("index", "read")}, 1) as lanes:
                for work, lane in lanes.items():
                    lane.step()  # of an epoch: what is left of the first
                    lane.turn(options.rounds if work == "index" else 1)
                    table.rows.append([name, "indexed" if work == "index" else "an epoch of segments read", lane.median,
                                       FILES * size / lane.median / 1e6, lane.process.peak / 1e6])
    return table


# All of it --------------------------------------------------------------------------------------------------


def run(options: Options) -> Result:
    """Six tables, and no target: what is too slow for whom is for the reader to say."""
    import hope
    from config import PRESETS

    name, threads = "tiny" if options.small else "nano", max(options.threads)
    config = PRESETS[name][0]
    env, others, notes = dict.fromkeys(THREADS, str(threads)), Others(), []
    waiting = Table("Seconds that one waits", ["for", "seconds"])
    if options.small:
        notes.append("Nothing was installed: --small.")
    else:
        installing(waiting, env)
    resuming(waiting, name, env, 3)
    writing = Table(f"Writing {WRITTEN} tokens after {PROMPT}, {hope.count(config):,} parameters, {threads} thread(s)",
                    ["program", "clients", "tokens/s", "tokens/s of each", "first token after, ms"])
    learning = Table("A text read by the server", ["learning", "tokens/s"])
    sessions = Table("Memory of the server, MB", ["without sessions", "and of each session", "its file"])
    with tempfile.TemporaryDirectory() as scratch:
        hope.save(Path(scratch) / "checkpoint.npz", hope.Hope(config, np.random.default_rng(0)))
        try:
            serving(Path(scratch), env, options, [writing, learning, sessions])
        except Failed as error:
            if "is not installed" not in str(error):
                raise
            print(f"left out: {error}", file=sys.stderr)
    job = Job("benchmarks.felt:theirs", {
        "parameters": hope.count(config), "width": config.width, "layers": config.layers})
    with race({str(many): Job(job.make, job.arguments, {"many": many}) for many in CLIENTS}, threads) as lanes:
        take_turns(lanes, 3, options.seconds)
        for many, lane in lanes.items():
            writing.rows.append(["transformers", int(many), int(many) * WRITTEN / lane.median, WRITTEN / lane.median,
                                 None])
    text = text_read(10_000 if options.small else 1_000_000, options)
    return Result("felt", [waiting, writing, learning, sessions, text], [], notes, others.share())
