"""`anabranch quantize` without a real model: what it refuses, what it writes, what it works out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from services.local_engine.on_vllm.quantize import checkpoint as checkpoint_room
from services.local_engine.on_vllm.quantize.checkpoint import RECORD, Made, quantize
from services.local_engine.on_vllm.quantize.command import command
from services.local_engine.on_vllm.quantize.comparison import TEXTS
from services.local_engine.on_vllm.quantize.figures import (
    Pace,
    Scores,
    TextScore,
    accuracy,
    likeliest_answer,
)
from services.local_engine.on_vllm.quantize.report import rows
from services.local_engine.on_vllm.quantize.schemes import (
    CannotQuantize,
    Layers,
    Scheme,
    TensorInfo,
    chosen_layers,
    expected_bytes,
)
from services.local_engine.on_vllm.quantize.source import read_source

torch = pytest.importorskip("torch")
pytest.importorskip("compressed_tensors")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 200 kB with random weights, its weights in two files."""
    import transformers

    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    transformers.LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="150KB")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "LICENSE").write_text("ours")
    (folder / "anabranch-model.json").write_text("{}")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def tensors_of(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


@pytest.mark.parametrize(("scheme", "bound"), [(Scheme.INT8, 1 / 254), (Scheme.FP8, 1 / 16)])
def test_a_layer_comes_out_in_8_bits_close_to_what_it_was(
    model: Path, tmp_path: Path, scheme: Scheme, bound: float
):
    made = quantize(model, tmp_path / "out", scheme)
    before, after = tensors_of(model), tensors_of(tmp_path / "out")
    assert made.layers == 14
    assert made.kept == ("lm_head",)
    name = "model.layers.1.mlp.down_proj"
    weight, scale = after[f"{name}.weight"], after[f"{name}.weight_scale"]
    assert weight.dtype == (torch.int8 if scheme is Scheme.INT8 else torch.float8_e4m3fn)
    assert scale.shape == (64, 1)
    original = before[f"{name}.weight"]
    off = (weight.float() * scale - original).abs()
    largest = original.abs().amax(dim=1, keepdim=True)
    assert bool((off <= largest * bound * 1.001).all())
    kept = "model.embed_tokens.weight"
    assert torch.equal(after[kept], before[kept])


def test_the_checkpoint_tells_vllm_its_scheme_and_people_its_origin(model: Path, tmp_path: Path):
    made = quantize(model, tmp_path / "out", Scheme.INT8, dtype="bfloat16")
    config = json.loads((made.path / "config.json").read_text())
    described = config["quantization_config"]
    assert (described["quant_method"], described["format"]) == (
        "compressed-tensors",
        "int-quantized",
    )
    assert described["ignore"] == ["lm_head"]
    assert config["dtype"] == "bfloat16"
    assert tensors_of(made.path)["model.norm.weight"].dtype == torch.bfloat16
    assert json.loads((made.path / RECORD).read_text())["source"]["sha256"].keys() == {
        file.name for file in model.glob("*.safetensors")
    }
    index = json.loads((made.path / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors_of(made.path).keys()
    assert index["metadata"]["total_size"] == made.bytes
    beside = {file.name for file in made.path.iterdir()}
    assert {"tokenizer.json", "chat_template.jinja", "LICENSE"} <= beside
    assert "anabranch-model.json" not in beside


def test_the_package_that_defines_the_format_reads_it_back(model: Path, tmp_path: Path):
    import transformers

    made = quantize(model, tmp_path / "out", Scheme.INT8_WEIGHTS)
    tokens = torch.arange(12)[None]
    with torch.inference_mode():
        before = transformers.AutoModelForCausalLM.from_pretrained(model)(tokens).logits
        after = transformers.AutoModelForCausalLM.from_pretrained(made.path)(tokens).logits
    assert float((before - after).abs().max()) < 0.05 * float(before.abs().max())


def test_what_is_there_stays_until_force_and_then_until_the_new_one_is_whole(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    quantize(model, out, Scheme.INT8)
    first = (out / RECORD).read_text()
    with pytest.raises(CannotQuantize, match="--force replaces it"):
        quantize(model, out, Scheme.FP8)
    monkeypatch.setattr(checkpoint_room, "_checked", _fail)
    with pytest.raises(RuntimeError):
        quantize(model, out, Scheme.FP8, force=True)
    assert (out / RECORD).read_text() == first
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    monkeypatch.undo()
    quantize(model, out, Scheme.FP8, force=True)
    assert json.loads((out / RECORD).read_text())["scheme"] == "fp8"
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def _fail(*_: object) -> int:
    raise RuntimeError("the disk went away")


def test_a_directory_that_is_no_checkpoint_is_not_replaced(model: Path, tmp_path: Path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/one.txt").write_text("dear")
    with pytest.raises(CannotQuantize, match="will not be replaced"):
        quantize(model, tmp_path / "letters", Scheme.INT8, force=True)
    with pytest.raises(CannotQuantize, match="directory of its own"):
        quantize(model, model / "inside", Scheme.INT8)


def test_a_full_disk_is_found_out_before_anything_is_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    little = SimpleNamespace(free=1000)
    monkeypatch.setattr(checkpoint_room.shutil, "disk_usage", lambda _: little)
    with pytest.raises(CannotQuantize, match="GB free, and the checkpoint takes"):
        quantize(model, tmp_path / "out", Scheme.INT8)
    assert not list(tmp_path.iterdir())


def a_copy(model: Path, at: Path, change: Callable[[Path], object]) -> Path:
    at.mkdir()
    for file in model.iterdir():
        (at / file.name).write_bytes(file.read_bytes())
    change(at)
    return at


def changed_config(**values: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))

    return change


def cut(folder: Path) -> None:
    file = max(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-8])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda at: (at / "w.gguf").write_bytes(b""), "quantised already: begin with the original"),
        (lambda at: (at / "config.json").unlink(), "no model directory"),
        (lambda at: (at / "config.json").write_text("{"), "is no JSON"),
        (changed_config(quantization_config={"quant_method": "awq"}), r"already \(awq\)"),
        (changed_config(model_type="no-such-model"), "does not know the architecture"),
        (changed_config(num_hidden_layers=3), "this architecture is not supported"),
        (cut, "the file is cut off"),
        (
            lambda at: (at / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "../../secret"}}'
            ),
            "no file beside it",
        ),
    ],
)
def test_what_cannot_be_made_smaller_is_refused_with_what_to_do(
    model: Path, tmp_path: Path, change: Callable[[Path], object], complaint: str
):
    source = a_copy(model, tmp_path / "source", change)
    with pytest.raises(CannotQuantize, match=complaint):
        quantize(source, tmp_path / "out", Scheme.INT8)
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


def test_weights_in_another_form_are_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CannotQuantize, match="no weights in safetensors"):
        read_source(tmp_path)
    with pytest.raises(CannotQuantize, match="fetch the model first"):
        read_source(tmp_path / "meta-llama")


def info(*shape: int) -> TensorInfo:
    return TensorInfo("f", "F32", shape, 4 * math.prod(shape))


def test_experts_in_one_tensor_are_refused_and_odd_shapes_too():
    layers = Layers(("a", "lm_head"), ("lm_head",), ("embed",))
    tensors = {"a.weight": info(64, 64), "embed.weight": info(1000, 64)}
    assert chosen_layers(tensors, layers) == ["a"]
    assert expected_bytes(tensors, ["a"], {}) == 64 * 64 + 4 * 64 + 4 * 64_000
    assert expected_bytes(tensors, ["a"], {"F32": 2}) == 64 * 64 + 4 * 64 + 2 * 64_000
    with pytest.raises(CannotQuantize, match="mixture of experts"):
        chosen_layers({**tensors, "experts.gate_up": info(8, 64, 64)}, layers)
    with pytest.raises(CannotQuantize, match="multiples of 16"):
        chosen_layers({**tensors, "a.weight": info(64, 60)}, layers)


def scores(probability: float, likeliest: int, right: list[bool]) -> Scores:
    text = TextScore((math.log(probability),) * 4, (1, 2, 3, 4), (1, 2, likeliest, 9))
    return Scores((text,) * 20, tuple(right))


def test_losses_are_shares_of_what_the_original_had_with_their_spread():
    before = scores(0.5, 3, [True] * 8 + [False] * 2)
    after = scores(0.25, 8, [True] * 6 + [False] * 4)
    found = accuracy(before, after)
    assert found.perplexity == (pytest.approx(2), pytest.approx(4))
    assert found.perplexity_growth.value == pytest.approx(1)
    assert found.next_token == (0.75, 0.5)
    assert found.next_token_loss.value == pytest.approx(1 / 3)
    assert found.agreement.value == pytest.approx(0.75)
    assert found.answers_loss.value == pytest.approx(0.25)
    assert found.answers_loss.low < 0.25 < found.answers_loss.high
    same = accuracy(before, before)
    assert (same.answers_loss.low, same.answers_loss.high) == (0, 0)
    assert accuracy(before, after) == found


def test_a_longer_answer_is_not_worse_for_being_longer():
    assert likeliest_answer([(-4.0, 2), (-6.0, 12)]) == 1


def test_the_pace_is_compared_round_by_round():
    pace = Pace(4, (10.0, 20.0, 40.0), (20.0, 20.0, 20.0))
    assert pace.medians == (20, 20)
    assert pace.ratios == (0.5, 1, 2)


def test_smaller_is_said_against_the_source_and_against_16_bits(tmp_path: Path):
    made = Made(tmp_path, Scheme.INT8, 1, (), source_bytes=400, source_elements=100, bytes=150)
    table = rows(made, None)
    assert [row[3] for row in table] == ["62.5 % smaller", "25.0 % smaller"]


def test_the_built_in_texts_are_sound():
    asked = json.loads(TEXTS.read_text("utf-8"))
    assert len(set(asked["texts"])) == len(asked["texts"]) == 100
    assert len(asked["questions"]) == 64
    for question in asked["questions"]:
        assert len({question["right"], *question["wrong"]}) == 4


def test_the_command_makes_it_and_says_so_in_json(model: Path, tmp_path: Path):
    out = tmp_path / "smaller"
    asked = [str(model), str(out), "--no-compare", "--json", "--report", str(tmp_path / "r.md")]
    result = CliRunner().invoke(command, asked)
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["smaller_than_source"] > 0.3
    assert Path(said["checkpoint"]) == out
    assert "| size of the weights |" in (tmp_path / "r.md").read_text()
    again = CliRunner().invoke(command, asked)
    assert again.exit_code == 4
    assert "--force" in again.stderr
