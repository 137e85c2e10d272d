"""What a run leaves for other tools: adapter or model folder, tokenizer, and the drift between the
base that was trained and the quantized one that they run."""

import shlex

from orpo_mlx.config.train import TrainConfig
from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Notice
from orpo_mlx.files import remove
from orpo_mlx.model import lora
from orpo_mlx.model.adapters import save_adapter
from orpo_mlx.model.base import load_weights, save_model_folder
from orpo_mlx.model.tokenizer import save_tokenizer
from orpo_mlx.run_folder.checkpoints import checkpoint_folder, problems_of
from orpo_mlx.run_folder.folder import ADAPTER, CONFIG, METRICS, MODEL, TRUNK
from orpo_mlx.run_folder.settings import adapter_step_of, save_adapter_step
from orpo_mlx.run_folder.state import load_state
from orpo_mlx.tokenizer_files import TOKENIZER_CONFIG
from orpo_mlx.training.checkpoint import load_checkpoint
from orpo_mlx.training.evaluate import evaluate_encoded, quantization_drift
from orpo_mlx.training.metrics.best import Best
from orpo_mlx.training.run import Run

DRIFT_PAIRS = 4
# The quantized forward on the CPU runs at about 2 GFLOP/s: more work would take minutes.
DRIFT_FLOPS = 2e11


def check_best_wanted(config: TrainConfig) -> None:
    """Raise OrpoError for options that need validations, for a run that has no held-out pairs."""
    early = f"--early-stop {config.early_stop}" if config.early_stop else ""
    wanted = [flag for flag in (early, "--final best" * (config.final == "best")) if flag]
    if wanted:
        raise OrpoError(
            f"{' and '.join(wanted)}: there are no held-out pairs to judge by. Give some with "
            "--valid-data, or hold out a share of the prompts with --valid-fraction."
        )


def finish(run: Run, *, thinking: bool, complete: bool) -> int:
    """Write the files, and return the step whose adapter they are.

    A run that was stopped leaves that of its last step.
    """
    output = run.config.output
    step = _choose_step(run) if complete else run.step
    save_adapter(output, run.optimizer.model_weights(), run.adapter_config)
    save_adapter_step(output, step)
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
    return step


def _choose_step(run: Run) -> int:
    """Put the weights that are to be left into the model, report which, and return their step."""
    best, metric = run.best, run.config.best_metric
    if best is None:
        return run.step
    if run.ends_early():
        run.report(Notice(_early_text(run, best)))
    step = _restore(run, best) if _wants_best(run) else run.step
    run.report(Notice(_which_text(run, best, step)))
    if not best.helped(metric):
        text = f"{metric} {best.start:.4f}, then {best.value:.4f} at best"
        text = f"No validation was better than the one before training ({text})."
        run.report(Notice(text, warning=True))
    return step


def _wants_best(run: Run) -> bool:
    return run.config.final == "best" or run.ends_early()


def _early_text(run: Run, best: Best) -> str:
    again = f"orpo-mlx train --resume --early-stop {best.since + 1}"
    return (
        f"Ended early after step {run.step} of {run.steps}: {best.since} "
        f"validation{'s' * (best.since > 1)} since step {best.step} had no better "
        f"{run.config.best_metric}. A higher --early-stop goes on: {again} --output "
        f"{shlex.quote(str(run.config.output))}"
    )


def _which_text(run: Run, best: Best, step: int) -> str:
    metric, what = run.config.best_metric, run.config.fine_tune_type
    whose = f"The {'model' if what == 'full' else 'adapter'} is that of step {step}"
    if best.step == run.step:
        return f"{whose}, the last and the best by {metric}: {best.value:.4f}."
    if step == best.step:
        return f"{whose}, the best by {metric}: {best.value:.4f} (the last: {best.last:.4f})."
    return (
        f"{whose}, the last, with {metric} {best.last:.4f}; step {best.step} was better "
        f"({best.value:.4f}), which --resume --final best takes."
    )


def _restore(run: Run, best: Best) -> int:
    """The weights of the best checkpoint into the model; returns its step.

    A validation whose checkpoint is not there or damaged is reported, and the last step's kept.
    """
    if best.step == run.step:
        return run.step
    folder = checkpoint_folder(run.config.output, best.step)
    try:
        if not folder.is_dir():  # as after another --best-metric
            raise OrpoError(f"there is no {folder}.")
        if problems := problems_of(folder):
            raise OrpoError(f"{folder} is damaged ({'; '.join(problems)}).")
        checkpoint = load_checkpoint(folder)
    except OrpoError as error:
        text = f"The weights of step {best.step}, the best, cannot be used: {error}"
        run.report(Notice(text, warning=True))
        return run.step
    run.optimizer.restore(checkpoint.weights, checkpoint.moments)
    return best.step


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
    run.open_log()
    state = load_state(output)
    made = state is not None and state.state == "done" and not _files_missing(run)
    if not made or _other_step_wanted(run):
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


def _other_step_wanted(run: Run) -> bool:
    best = run.best
    wanted = best.step if best and _wants_best(run) else run.step
    return adapter_step_of(run.config.output) not in (None, wanted)


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
