"""``gemquant eval`` against lm-eval's own model and word perplexity, on the same tokens."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from gemquant.core.artifact.evaluation import EvaluationDocument
from tests.unit.cli.conftest import Run

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra tasks)")

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]

TEXT = "the quick brown fox jumps over the lazy dog and it is for you and for the dog"
TASK = """\
task: tiny_text
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: word_perplexity
"""


def test_perplexity_is_lm_evals_word_perplexity(
    run: Run, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    # lm-eval counts what follows one BOS; a window holds the same and not one token more.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(tiny_folder / "tokenizer.json"), bos_token="<bos>", eos_token="<eos>"
    )
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    Path("text.txt").write_text(TEXT)
    Path("text.jsonl").write_text(json.dumps({"text": TEXT}) + "\n")
    task = tmp_path / "tasks" / "tiny_text.yaml"
    task.parent.mkdir()
    task.write_text(TASK.format(file=tmp_path / "text.jsonl"))

    made = run("cast", str(tiny_folder), "--dtype", "float32", "-o", "plain", "--no-eval", "-q")
    assert made.code == 0, made.err
    result = run(
        *("eval", "plain", "--suite", "text.txt", "--seq-len", str(len(ids) + 1), "-o", "e.json"),
        *("--eval-windows", "1", "--no-native", "--threads", "1", "-q"),
    )
    assert result.code == 0, result.err
    found = EvaluationDocument.read(Path("e.json")).artifacts[0].levels[0].slices[0]
    assert found.windows.tokens == (len(ids),)

    model = AutoModelForCausalLM.from_pretrained("plain", attn_implementation="eager")
    harness = HFLM(pretrained=model, tokenizer=tokenizer, max_length=1024, device="cpu")
    # Left to itself it has the tokenizer add a BOS: a text then has two, and the second is counted.
    harness.add_bos_token = False
    results = lm_eval.simple_evaluate(
        model=harness,
        tasks=["tiny_text"],
        task_manager=TaskManager(include_path=str(task.parent), include_defaults=False),
        bootstrap_iters=0,
    )
    theirs = results["results"]["tiny_text"]["word_perplexity,none"]
    words = len(TEXT.split())
    ours = math.exp(found.windows.nll_quantized[0] * len(ids) / words)
    assert ours == pytest.approx(theirs, rel=1e-4)
