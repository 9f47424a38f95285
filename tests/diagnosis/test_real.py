"""Real engines that cannot start: what the user is told, and that nothing of them is left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.base import ExitedBeforeReady
from launcher import launch
from tests.faults import traces
from tests.makers import makers
from tests.supervision import free_port

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]


def _text_in_place_of_a_model(folder: Path) -> str:
    file = folder / "model.gguf"
    file.write_text("<!DOCTYPE html>")
    return f"model.source=file:{file}"


def _model_of_an_unknown_type(folder: Path) -> str:
    (folder / "config.json").write_text(json.dumps({"architectures": ["FooForCausalLM"], "model_type": "foo"}))
    return f"model.source=file:{folder}"


def _model_of_an_unknown_class(folder: Path) -> str:
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1, "num_hidden_layers": 1}
    config = {"architectures": ["FooForCausalLM"], "model_type": "llama", "vocab_size": 64, **sizes}
    (folder / "config.json").write_text(json.dumps(config))
    return f"model.source=file:{folder}"


def _no_backends(folder: Path) -> str:
    return f"engine.backend_directory={folder}"


#: engine, a fault, cause and what is quoted of the line, remedy
FAULTS: list[tuple[str, str | Callable[[Path], str], str, str]] = [
    ("llamacpp", "engine.args.bogus=1",
     "it does not know one of its flags (server.py: error: unrecognized arguments: --bogus 1)", "check engine.args"),
    ("llamacpp", _text_in_place_of_a_model, "the model's file cannot be read (error: ", "fetch it again"),
    # It prints hundreds of lines of usage after it.
    ("triton", "engine.args.bogus=1", "it does not know one of its flags (", "check engine.args"),
    ("triton", _no_backends,
     "this tritonserver has not the backend that the model needs (Invalid argument: unable to find backend library",
     "check engine.backend_directory"),
    ("torchserve", "engine.heap_mb=1", "Java's heap is too small (Too small maximum heap)", "raise engine.heap_mb"),
    ("transformers", _model_of_an_unknown_type,
     "the model's folder has no tokenizer (ValueError: Unrecognized processing class", "put tokenizer.json"),
    # A line of 10 KB, with all that it does know.
    ("vllm", _model_of_an_unknown_class,
     "this engine does not know the model's architecture (Value error, Model architectures ['FooForCausalLM'] are not",
     "use another engine"),
    ("vllm", _model_of_an_unknown_type,
     "this engine does not know the model's architecture (Value error, The checkpoint you are trying to load has",
     "use another engine"),
]  # fmt: skip


@pytest.mark.parametrize(("engine", "fault", "cause", "remedy"), FAULTS)
def test_the_error_says_why_and_what_to_do_and_nothing_is_left(
    engine: str, fault: str | Callable[[Path], str], cause: str, remedy: str, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    asked = fault if isinstance(fault, str) else fault(tmp_path / "model")
    makers()  # before the server starts
    serving = launch(f"engine={engine}", "device=cpu", "model=smollm2", asked, f"port={free_port()}")

    with pytest.raises(ExitedBeforeReady) as error:
        serving.start()

    first, *others = str(error.value).splitlines()
    assert f": {cause}" in first
    assert remedy in first
    assert others[-1] == "  it ended 1 × before it served"  # and was not tried again in vain
    run_dir, ports = Path(serving.plan.run_dir), [serving.plan.endpoints.http.port]
    assert traces.processes(run_dir) == {}
    assert traces.taken(ports) + makers().left_by(run_dir) == []
    assert not run_dir.exists()
