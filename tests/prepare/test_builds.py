"""Conversions: which steps lead where, with which command lines, and what is left of one that fails."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from engines.base import FILES, OUTPUT, BuildProfile, BuildStep, Environment, PlanError, PrepareError
from launcher.planning.conversions import steps
from launcher.planning.workshop import Workshop
from launcher.prepare.builds import run
from launcher.progress import Progress

QUIET = Progress(quiet=True)
SHOP = Workshop(
    cache=Path("/cache"),
    templates=Path("/templates"),
    model_id="m-1.5b",
    identity="hf:org/m@v1",
    context_length=4096,
    dtype="bfloat16",
    product="RBLN-CA25",
    device_count=4,
    settings={"batch_size": 2, "num_devices": 8},
    converter=Environment("convert", "/env/convert", "3.11", requirements=("gguf==1",)),
    exporter=Environment("onnx", "/env/onnx", "3.11", requirements=("onnx==1",)),
    serving=Environment("triton-rbln", "/env/rbln", "3.12", requirements=("optimum-rbln==1",)),
)


def test_a_format_that_is_wanted_as_it_is_needs_no_step() -> None:
    assert steps("gguf", ("gguf",), "/m/a.gguf", SHOP) == ("gguf", ())


def test_gguf_becomes_safetensors_with_our_script_in_the_converters_environment() -> None:
    reached, (step,) = steps("gguf", ("safetensors",), "/m/a.gguf", SHOP)

    assert reached == "safetensors"
    assert step == BuildStep(
        name="gguf-to-safetensors",
        argv=("/env/convert/bin/python", "/templates/convert/gguf_to_safetensors.py", "/m/a.gguf", "{output}"),
        output=step.output,
        environment=SHOP.converter,
        env={"HF_HUB_OFFLINE": "1"},
        model_id="m-1.5b",
        profile=BuildProfile("any", "gguf-to-safetensors", "gguf==1", interface="safetensors"),
    )
    assert step.output.startswith("/cache/artifacts/m-1.5b-safetensors-")


def test_safetensors_is_compiled_for_rbln_with_the_vendors_command_in_the_serving_environment() -> None:
    reached, (step,) = steps("safetensors", ("rbln",), "/m", SHOP)

    assert reached == "rbln"
    assert step == BuildStep(
        name="optimum-rbln-compile",
        argv=(
            "/env/rbln/bin/optimum-rbln-cli", "--model-id", "/m", "-o", "{output}",
            "--batch_size", "2", "--max_seq_len", "4096", "--num_devices", "4",
            "--hf-dtype", "bfloat16", "--npu", "RBLN-CA25",
        ),
        output=step.output,
        environment=SHOP.serving,
        model_id="m-1.5b",
        profile=BuildProfile(
            "RBLN-CA25", "optimum-rbln-cli", "optimum-rbln==1",
            {"batch_size": 2, "max_seq_len": 4096, "num_devices": 4, "dtype": "bfloat16"}, "rbln",
        ),
    )  # fmt: skip
    assert step.output.startswith("/cache/artifacts/m-1.5b-rbln-")


@pytest.mark.parametrize(
    ("product", "length", "attention"),
    [
        ("RBLN-CA25", 32768, []),
        ("RBLN-CA25", 131072, ["--attn_impl", "flash_attn", "--kvcache_partition_len", "16384"]),
        ("RBLN-CR03", 16384, []),
        ("RBLN-CR03", 32768, ["--attn_impl", "flash_attn", "--kvcache_partition_len", "8192"]),
    ],
)
def test_beyond_what_the_chip_does_eagerly_attention_is_flash(product: str, length: int, attention: list[str]) -> None:
    shop = dataclasses.replace(SHOP, product=product, context_length=length)

    _, (step,) = steps("safetensors", ("rbln",), "/m", shop)

    assert [word for word in step.argv[9:13] if attention] == attention


def test_a_length_that_no_attention_can_do_is_refused_with_the_limit() -> None:
    with pytest.raises(PlanError, match=r"model.context_length=40000 is beyond the 32768 of eager attention"):
        steps("safetensors", ("rbln",), "/m", dataclasses.replace(SHOP, context_length=40000))


def test_a_folder_of_safetensors_is_exported_to_one_file(tmp_path: Path) -> None:
    shop = dataclasses.replace(SHOP, cache=tmp_path)
    reached, (step,) = steps("safetensors", ("torchscript", "onnx"), "/m", shop)

    assert reached == "onnx"
    assert step.argv == (
        "/env/onnx/bin/python", "-W", "ignore", "/templates/convert/safetensors_to_onnx.py", "/m",
        "{output}/model.onnx",
    )  # fmt: skip
    assert step.model_path == f"{step.output}/model.onnx"
    assert step.profile == BuildProfile("any", "safetensors-to-onnx", "onnx==1", interface="onnx")


def test_without_a_product_the_compiler_chooses_one_itself() -> None:
    _, (step,) = steps("safetensors", ("rbln",), "/m", dataclasses.replace(SHOP, product=None))

    assert "--npu" not in step.argv


def test_gguf_to_rbln_is_two_steps_and_the_second_reads_what_the_first_makes() -> None:
    reached, (first, second) = steps("gguf", ("rbln",), "/m/a.gguf", SHOP)

    assert reached == "rbln"
    assert (first.name, second.name) == ("gguf-to-safetensors", "optimum-rbln-compile")
    assert second.argv[2] == first.output


def test_what_is_wanted_first_is_made_though_the_source_would_do_too() -> None:
    assert steps("gguf", ("safetensors", "gguf"), "/m/a.gguf", SHOP)[0] == "safetensors"
    assert steps("gguf", ("gguf", "safetensors"), "/m/a.gguf", SHOP) == ("gguf", ())


@pytest.mark.parametrize(("source", "wanted"), [("rbln", "safetensors"), ("onnx", "gguf"), ("safetensors", "gguf")])
def test_where_no_conversion_leads_is_an_empty_answer(source: str, wanted: str) -> None:
    assert steps(source, (wanted,), "/m", SHOP) == ("", ())


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(SHOP, identity="hf:org/m@v2"),
        dataclasses.replace(SHOP, product="RBLN-CR03"),
        dataclasses.replace(SHOP, device_count=1),
        dataclasses.replace(SHOP, context_length=8192),
        dataclasses.replace(SHOP, dtype="float32"),
        dataclasses.replace(SHOP, settings={"batch_size": 3}),
        dataclasses.replace(SHOP, serving=dataclasses.replace(SHOP.serving, requirements=("optimum-rbln==2",))),
        dataclasses.replace(SHOP, serving=Environment("mine", "/opt/mine", "3.12", managed=False)),
    ],
)
def test_another_ingredient_is_another_artifact(other: Workshop) -> None:
    ours, theirs = (steps("safetensors", ("rbln",), "/m", shop)[1][0].output for shop in (SHOP, other))

    assert ours != theirs


def test_the_place_of_the_cache_does_not_change_the_key() -> None:
    moved = dataclasses.replace(SHOP, cache=Path("/elsewhere"))
    ours, theirs = (Path(steps("gguf", ("safetensors",), "/m", shop)[1][0].output).name for shop in (SHOP, moved))

    assert ours == theirs


# ------------------------------------------------------------------------------------------------------------ running


def step_of(tmp_path: Path, code: str, name: str = "m-1.5b-made-1") -> BuildStep:
    script = f"import os, sys; from pathlib import Path; out = Path(sys.argv[1])\n{code}"
    return BuildStep(
        name="made",
        argv=(sys.executable, "-c", script, OUTPUT),
        output=str(tmp_path / "artifacts" / name),
        environment=Environment("current", sys.prefix, "3.11", managed=False),
        env={"GREETING": "hello"},
    )


def test_a_step_finds_its_files_where_its_words_say(tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; Path(sys.argv[2], 'copy').write_text(Path(sys.argv[1]).read_text())"
    step = BuildStep(
        name="copied",
        argv=(sys.executable, "-c", script, f"{FILES}/deep/a.txt", OUTPUT),
        output=str(tmp_path / "artifacts/m-copied-1"),
        environment=Environment("current", sys.prefix, "3.11", managed=False),
        files={"deep/a.txt": "hello\n"},
    )

    run(step, QUIET)

    assert (tmp_path / "artifacts/m-copied-1/copy").read_text() == "hello\n"


def test_a_step_fills_its_folder_once(tmp_path: Path) -> None:
    step = step_of(tmp_path, "(out / 'weights').write_text(os.environ['GREETING'] + out.name)")

    run(step, QUIET)
    run(dataclasses.replace(step, argv=("/does/not/exist",)), QUIET)

    # Not made under its own name: what has that name is whole.
    assert (Path(step.output) / "weights").read_text().startswith("hello.m-1.5b-made-1.partial-")


def test_a_step_that_fails_leaves_its_log_and_nothing_else(tmp_path: Path) -> None:
    step = step_of(tmp_path, "(out / 'half').touch(); print('no compiler'); sys.exit(3)")

    with pytest.raises(PrepareError) as caught:
        run(step, QUIET)

    left = [file.name for file in (tmp_path / "artifacts").iterdir() if not file.name.endswith(".lock")]
    (log,) = (tmp_path / "artifacts").glob("*.log")
    assert str(caught.value) == f"build step made exited 3 (log: {log}):\n  no compiler"
    assert left == [log.name]
    assert log.read_text() == "no compiler\n"


def test_models_whose_names_differ_after_a_dot_have_logs_of_their_own(tmp_path: Path) -> None:
    for name in ("llama3.1-8b", "llama3.2-1b"):
        run(step_of(tmp_path, "print('hi')", name), QUIET)

    assert len(list((tmp_path / "artifacts").glob("*.log"))) == 2


def test_an_exit_code_is_said_with_what_the_command_means_by_it(tmp_path: Path) -> None:
    step = dataclasses.replace(step_of(tmp_path, "sys.exit('weights are odd')"), meanings={"1": "it gave up"})

    with pytest.raises(PrepareError, match=r"^build step made exited 1: it gave up \(log: .*\):\n  weights are odd$"):
        run(step, QUIET)


def test_a_command_that_is_killed_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(PrepareError, match=r"^build step made was ended by signal 9 \("):
        run(step_of(tmp_path, "os.kill(os.getpid(), 9)"), QUIET)


def test_a_command_that_is_not_there_is_an_error_of_its_own(tmp_path: Path) -> None:
    step = dataclasses.replace(step_of(tmp_path, ""), argv=("no-such-compiler", OUTPUT))

    with pytest.raises(PrepareError, match=r"^build step made: 'no-such-compiler' cannot be run: No such file"):
        run(step, QUIET)


def test_a_command_that_makes_nothing_and_says_nothing_is_caught(tmp_path: Path) -> None:
    step = dataclasses.replace(step_of(tmp_path, "print('done')"), made="m.npu")

    with pytest.raises(PrepareError, match=r"^build step made exited 0, but made no m\.npu \(log: .*\):\n  done$"):
        run(step, QUIET)
    assert not Path(step.output).exists()


def test_variables_of_a_step_may_name_its_folders(tmp_path: Path) -> None:
    code = "(out / 'where').write_text(os.environ['SCRATCH'])"
    step = dataclasses.replace(step_of(tmp_path, code), env={"SCRATCH": f"{OUTPUT}/tmp"})

    run(step, QUIET)

    assert ".partial-" in (Path(step.output) / "where").read_text()
