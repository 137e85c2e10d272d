"""What a run leaves for other tools: adapter or model folder, tokenizer, and the drift between the
base that was trained and the quantized one that they run."""

from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Notice
from orpo_mlx.files import remove
from orpo_mlx.model import lora
from orpo_mlx.model.adapters import save_adapter
from orpo_mlx.model.base import load_weights, save_model_folder
from orpo_mlx.model.tokenizer import save_tokenizer
from orpo_mlx.run_folder.folder import ADAPTER, CONFIG, METRICS, MODEL, TRUNK
from orpo_mlx.run_folder.state import load_state
from orpo_mlx.tokenizer_files import TOKENIZER_CONFIG
from orpo_mlx.training.evaluate import evaluate_encoded, quantization_drift
from orpo_mlx.training.run import Run

DRIFT_PAIRS = 4
# The quantized forward on the CPU runs at about 2 GFLOP/s: more work would take minutes.
DRIFT_FLOPS = 2e11


def finish(run: Run, *, thinking: bool, complete: bool) -> None:
    """Write the files; a run that was stopped leaves an adapter of its last step."""
    output = run.config.output
    save_adapter(output, run.optimizer.model_weights(), run.adapter_config)
    save_tokenizer(run.base.tokenizer, output)
    if complete:
        remove(output / TRUNK)
    if complete and run.config.fine_tune_type == "full":
        save_model_folder(run.base, output / MODEL)
    if not thinking and "enable_thinking" in str(run.base.tokenizer.chat_template):
        switch = "--chat-template-config '{\"enable_thinking\": false}'"
        run.report(Notice(f"Trained with thinking off: mlx_lm.generate needs {switch}"))
    if complete and run.base.dequantized and run.valid:
        run.report(Notice(_drift(run)))


def is_finished(run: Run) -> bool:
    """Whether a resumed run has nothing left to do; one at its last step is reported.

    Raises OrpoError for a run that is past its last step, and would never come to it.
    """
    output, step, steps = run.config.output, run.step, run.steps
    if step > steps:
        raise OrpoError(
            f"--resume: the last checkpoint of {output} is of step {step}, but by its {CONFIG} the "
            f"run has {steps} steps. Put back the steps, epochs and batch_size that it was begun "
            "with, or begin again with --overwrite."
        )
    if step < steps:
        return False
    state = load_state(output)
    if state is None or state.state != "done" or _files_missing(run):
        again = "its end is made again from its last checkpoint"
        run.report(Notice(f"{output} is at its last step, {step} of {steps}: {again}."))
        return False
    run.report(
        Notice(
            f"{output} is finished: {step} of {steps} steps. To train it further, start another "
            f"run from it with --adapter {output}."
        )
    )
    return True


def _files_missing(run: Run) -> bool:
    full = (MODEL,) if run.config.fine_tune_type == "full" else ()
    names = (*ADAPTER, TOKENIZER_CONFIG, METRICS, *full)
    return not all((run.config.output / name).exists() for name in names)


def _drift(run: Run) -> str:
    pairs = _drift_pairs(run)
    trained = evaluate_encoded(run.path, pairs, beta=0.0, nll_on="response", batch_size=1)
    quantized, _, _ = load_weights(
        run.base.folder, run.config.model, trust_remote_code=run.config.trust_remote_code
    )
    average, largest = quantization_drift(quantized, run.config.output, pairs, trained, run.path)
    return (
        "Trained on the base in float32; on its quantized weights the mean log-prob of a response "
        f"differs by {average:.4f} (at most {largest:.4f}; {len(pairs)} held-out pairs)."
    )


def _drift_pairs(run: Run) -> list[EncodedPair]:
    """The shortest held-out pairs that can be computed in reasonable time, one at least."""
    shortest = sorted(run.valid, key=_tokens)[:DRIFT_PAIRS]
    _, parameters = lora.count_parameters(run.base.model)
    pairs: list[EncodedPair] = []
    work = 0.0
    for pair in shortest:
        work += 2.0 * parameters * _tokens(pair)
        if pairs and work > DRIFT_FLOPS:
            break
        pairs.append(pair)
    return pairs


def _tokens(pair: EncodedPair) -> int:
    return 2 * len(pair.prompt) + len(pair.chosen) + len(pair.rejected)
