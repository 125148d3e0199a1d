"""Explaining from the command line: every family, images of every kind, chats, and errors."""

from __future__ import annotations

import argparse
import io
import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.ExifTags import Base
from transformers import AutoModelForImageTextToText

from captum_mllm import (
    MLLM,
    ImageTextInput,
    LogitLens,
    MLLMAttribution,
    MLLMAttributionResult,
)
from captum_mllm.cli import main
from captum_mllm.commands import explain, setup
from captum_mllm.commands.methods import METHODS
from tests.models.tiny_models import FAMILIES, save

SIZES = {"square": (96, 96), "wide": (60, 200), "tall": (180, 70)}
KINDS = ["RGB", "RGBA", "grey", "palette", "16-bit", "EXIF-rotated"]
# Every image with every family takes long; one family for each goes round.
MATRIX = [
    pytest.param(kind, shape, family, marks=() if turn % len(FAMILIES) == own else pytest.mark.slow)
    for turn, (kind, shape) in enumerate(product(KINDS, SIZES))
    for own, family in enumerate(FAMILIES)
]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: save(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}


def write_image(path: Path, kind: str, size: tuple[int, int]) -> Path:
    levels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    picture = Image.fromarray(levels)
    exif = Image.Exif()
    if kind == "RGBA":
        picture.putalpha(Image.fromarray(levels[..., 0]))
    elif kind == "grey":
        picture = picture.convert("L")
    elif kind == "palette":
        picture = picture.quantize(64)
    elif kind == "16-bit":
        picture = Image.fromarray(levels[..., 0].astype(np.uint16) * 257)
    elif kind == "EXIF-rotated":
        exif[Base.Orientation] = 6
    picture.save(path, exif=exif)
    return path


@pytest.mark.parametrize(("kind", "shape", "family"), MATRIX)
def test_explain_takes_every_kind_of_image(
    kind: str, shape: str, family: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    picture = write_image(tmp_path / "image.png", kind, SIZES[shape])
    output = tmp_path / "out"
    arguments = ["explain", str(picture), "--model", str(folders[family]), "--answer", "a cat"]
    assert main([*arguments, "--scales", "1,1.5", "--output", str(output), "--quiet"]) == 0
    result = MLLMAttributionResult.load(output / "result.safetensors")
    height, width = SIZES[shape]
    expected = (height, width) if kind == "EXIF-rotated" else (width, height)
    assert result.image.size == expected
    assert result.output_words == ["a", "cat"]
    assert [scale.scale for scale in result.scales] == [1.0, 1.5]
    assert "<!doctype html>" in (output / "page.html").read_text(encoding="utf-8").lower()
    with Image.open(output / "words.png") as sheet:
        assert min(sheet.size) > 100


def test_streamed_words_are_those_of_the_result(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = write_image(tmp_path / "image.png", "RGB", (96, 96))
    arguments = ["explain", str(picture), "--model", str(folders["internvl"]), "--stream"]
    arguments += ["--quiet", "--output", str(tmp_path / "out")]
    assert main([*arguments, "--max-new-tokens", "6"]) == 0
    result = MLLMAttributionResult.load(tmp_path / "out" / "result.safetensors")
    assert result.method == "ARC(LogitLens)"
    printed = capsys.readouterr().out.split("Answer: ")[0].splitlines()
    assert [line.rpartition("  ")[0] for line in printed] == result.output_words
    assert main([*arguments, "--scales", "0.5,1"]) == 2
    assert "at scale 1 alone" in capsys.readouterr().err
    for method in ("attended-lens", "rollout", "token-cam"):
        assert main([*arguments, "--method", method]) == 2
        assert "or pass --method msea" in capsys.readouterr().err
    assert main([*arguments, "--answer", "a cat"]) == 2
    assert "leave out --answer or --stream" in capsys.readouterr().err


def test_what_ifs_and_alternatives_are_kept(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = write_image(tmp_path / "image.png", "RGB", (96, 96))
    arguments = ["explain", str(picture), "--model", str(folders["llava"]), "--quiet"]
    arguments += ["--output", str(tmp_path / "out"), "--answer", "a cat", "--scales", "1"]
    arguments += ["--method", "logit-lens"]
    assert main([*arguments, "--alternatives", "1", "--what-if", "cat"]) == 0
    assert "without 'cat'" in capsys.readouterr().out
    result = MLLMAttributionResult.load(tmp_path / "out" / "result.safetensors")
    assert [each.removed for each in result.what_ifs] == ["cat"]
    assert result.alternatives is not None and result.alternatives.ranks.shape[1] == 1
    # What the model said is kept, whatever words were asked for.
    assert main([*arguments, "--what-if", "bird", "--what-if", "cat"]) == 2
    assert "no word or phrase 'bird'" in capsys.readouterr().err
    result = MLLMAttributionResult.load(tmp_path / "out" / "result.safetensors")
    assert [each.removed for each in result.what_ifs] == ["cat"] and result.alternatives is None
    assert main([*arguments, "--alternatives", "-1"]) == 2
    assert "--alternatives -1" in capsys.readouterr().err


@pytest.mark.parametrize("method", [None, *METHODS])
def test_methods(
    method: str | None, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = write_image(tmp_path / "image.png", "RGB", (96, 96))
    arguments = ["explain", str(picture), "--model", str(folders["llava"]), "--answer", "a cat"]
    chosen = [] if method is None else ["--method", method]
    assert main([*arguments, *chosen, "--output", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert "Answer: a cat" in out
    assert "Loading" in err
    named = {
        None: "ARC(MSEA(AttendedLens))",
        "attended-lens": "ARC(MSEA(AttendedLens))",
        "msea": "MSEA(LogitLens)",
        "arc": "ARC(MSEA(LogitLens))",
        "tam": "TAM(LogitLens)",
        "logit-lens": "LogitLens",
        "rollout": "AttentionMaps",
        "token-cam": "TokenCam",
    }
    assert f"Method: {named[method]}" in out
    assert ("scale 0.5" in out) == (method in (None, "attended-lens", "msea", "arc"))


def test_half_precision_and_the_models_own_answer(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = write_image(tmp_path / "image.png", "RGB", (96, 96))
    arguments = ["explain", str(picture), "--model", str(folders["qwen2_vl"]), "--quiet"]
    options = ["--dtype", "bfloat16", "--max-new-tokens", "3", "--output", str(tmp_path / "out")]
    assert main([*arguments, *options]) == 0
    result = MLLMAttributionResult.load(tmp_path / "out" / "result.safetensors")
    assert 1 <= len(result.output_tokens) <= 3
    assert result.finished is False
    assert "cut off at the limit of tokens; --max-new-tokens" in capsys.readouterr().out


def test_large_scales_are_lowered_to_the_context_unless_they_were_asked_for(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(folders["qwen2_vl"], model)
    config = json.loads((model / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 150
    (model / "config.json").write_text(json.dumps(config))
    image = write_image(tmp_path / "image.png", "RGB", (224, 224))
    arguments = ["explain", str(image), "--model", str(model), "--answer", "a cat", "--quiet"]
    arguments += ["--output", str(tmp_path / "out")]
    with pytest.warns(UserWarning, match=r"the scales are now \(0.5, 1.0, 1.\d+\)"):
        assert main([*arguments, "--method", "msea"]) == 0
    assert main([*arguments, "--method", "msea", "--scales", "1,2"]) == 2
    assert "at scale 2, but the model's context has 150" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="max_image_tokens=20"):
        assert main([*arguments, "--method", "msea", "--max-image-tokens", "20"]) == 0
    result = MLLMAttributionResult.load(tmp_path / "out" / "result.safetensors")
    assert all(scale.image_attr[0].numel() <= 20 for scale in result.scales)


def test_states_that_overflow_are_an_error_of_one_line(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = AutoModelForImageTextToText.from_pretrained(folders["qwen2_vl"])
    with torch.no_grad():
        model.model.language_model.layers[1].mlp.down_proj.weight.fill_(torch.inf)
    broken = tmp_path / "model"
    shutil.copytree(folders["qwen2_vl"], broken)
    model.save_pretrained(broken)
    image = write_image(tmp_path / "image.png", "RGB", (56, 56))
    arguments = ["explain", str(image), "--model", str(broken), "--answer", "a cat"]
    assert main([*arguments, "--quiet", "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "error: the model's states are NaN or infinite" in error
    assert "Traceback" not in error


def test_the_checkpoint_s_own_precision_and_the_first_device(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    model = AutoModelForImageTextToText.from_pretrained(folders["llava"], dtype="bfloat16")
    model.save_pretrained(tmp_path / "half")
    arguments = ["explain", "--model", str(tmp_path / "half"), "--processor", str(folders["llava"])]
    parser = argparse.ArgumentParser()
    explain.add_arguments(parser)
    for more, dtype in ([], torch.bfloat16), (["--dtype", "float32"], torch.float32):
        options = parser.parse_args([*arguments[1:], *more])
        device = setup.choose_device(options.device)
        best = "cuda" if torch.cuda.is_available() else "mps"
        best = best if best == "cuda" or torch.backends.mps.is_available() else "cpu"
        assert device.type == best
        mllm = setup.load_model(options, device)
        assert mllm.dtype == dtype and mllm.device.type == best
    # Without the processor, which lies elsewhere.
    assert main([*arguments[:3], "--answer", "a", "--output", str(tmp_path / "out")]) == 2


def test_several_images_a_system_message_and_a_chat(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write_image(tmp_path / "first.png", "RGB", (96, 96))
    second = write_image(tmp_path / "second.png", "RGB", (60, 90))
    text = {"type": "text", "text": "a cat ?"}
    user = [{"type": "image", "path": "first.png"}, {"type": "image", "image": "second.png"}, text]
    system = {"role": "system", "content": [{"type": "text", "text": "the cat"}]}
    chat = tmp_path / "chat.json"
    chat.write_text(json.dumps({"messages": [{"role": "user", "content": user}]}))
    common = ["--model", str(folders["qwen2_vl"]), "--answer", "a cat", "--explained", "1"]
    common += ["--method", "logit-lens", "--quiet"]
    ways = {
        "options": [str(first), str(second), "--prompt", "a cat ?", "--system", "the cat"],
        "chat": ["--messages", str(chat), "--system", "the cat"],
    }
    results = {}
    for way, arguments in ways.items():
        assert main(["explain", *arguments, *common, "--output", str(tmp_path / way)]) == 0
        results[way] = MLLMAttributionResult.load(tmp_path / way / "result.safetensors")
    mllm = MLLM.from_pretrained(folders["qwen2_vl"])
    images = [Image.open(first), Image.open(second)]
    content = [{"type": "image"}, {"type": "image"}, text]
    inp = ImageTextInput(
        images, messages=[system, {"role": "user", "content": content}], explained=1
    )
    expected = MLLMAttribution(LogitLens(mllm)).attribute(inp, target="a cat")
    for result in results.values():
        assert result.image.size == (90, 60)
        assert result.input_tokens == expected.input_tokens
        torch.testing.assert_close(result.image_attr, expected.image_attr)


def test_all_of_several_images_are_explained(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / "first.png", tmp_path / "second.png"]
    for path, size in zip(paths, ((84, 56), (60, 90))):
        Image.new("RGB", size, "teal").save(path)
    common = ["--model", str(folders["qwen2_vl"]), "--answer", "a cat", "--prompt", "which ?"]
    output = ["--quiet", "--output", str(tmp_path / "out")]
    assert main(["explain", *map(str, paths), *common, *output]) == 0
    result = MLLMAttributionResult.load(tmp_path / "out" / "result.safetensors")
    assert result.explained == (0, 1)
    first, second = result.image_shares.mean(0).tolist()
    assert f"Evidence: image 1 {first:.0%}, image 2 {second:.0%}" in capsys.readouterr().out
    assert (tmp_path / "out" / "words.png").exists()


def test_a_folder_of_frames_is_explained_as_a_video(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "frames").mkdir()
    for index in range(6):
        frame = Image.new("RGB", (84, 56), (40 * index, 0, 0))
        frame.save(tmp_path / "frames" / f"{index}.png")
    common = ["--model", str(folders["qwen2_vl"]), "--answer", "a cat", "--quiet"]
    video = ["--video", str(tmp_path / "frames"), "--frames", "3", "--fps", "4"]
    output = ["--scales", "1", "--output", str(tmp_path / "out")]
    assert main(["explain", *video, *common, *output]) == 0
    result = MLLMAttributionResult.load(tmp_path / "out" / "result.safetensors")
    assert result.times == (0.0, 0.5, 1.0)
    assert [image.getpixel((0, 0))[0] for image in result.images] == [0, 80, 160]
    assert "Evidence: 0.0 s " in capsys.readouterr().out


@pytest.mark.parametrize("more", [["--answer", "图片"], ["--stream", "--max-new-tokens", "12"]])
@pytest.mark.parametrize("broken", [False, True])
def test_output_is_not_lost_on_a_console_that_cannot_print_it(
    more: list[str],
    broken: bool,
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Pipe(io.BytesIO):
        def write(self, data: Any) -> int:
            if broken:
                raise BrokenPipeError
            return super().write(data)

    pipe = Pipe()
    console = io.TextIOWrapper(pipe, encoding="cp1252", write_through=True)
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", console)
        arguments = [
            "explain",
            "--model",
            str(folders["qwen2_vl"]),
            "--prompt",
            "what ?",
            "--quiet",
        ]
        assert main([*arguments, *more, "--output", str(tmp_path / "out")]) == 0
    assert console.errors == "strict"
    for name in ("page.html", "words.png", "result.safetensors"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    if not broken and "--answer" in more:
        assert b"Answer: \\u56fe \\u7247" in pipe.getvalue()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.png"], "absent.png"),
        (["{folder}/note.txt"], "cannot identify image"),
        (["{folder}/cut.jpg"], "the image cannot be read"),
        (["{folder}/image.png", "--prompt", ""], "the prompt is empty"),
        (["{folder}/image.png", "--prompt", " "], "the prompt is empty"),
        (["{folder}/image.png", "--answer", ""], "the answer to explain is empty"),
        (["{folder}/image.png", "--max-new-tokens", "0"], "expected at least 1"),
        (["{folder}/image.png", "--device", "gpu"], "expected auto or a device of PyTorch"),
        (["{folder}/image.png", "--explained", "1"], "the index of one of 1 image(s)"),
        (["{folder}/image.png", "--messages", "{folder}/absent.json"], "absent.json"),
        (["{folder}/image.png", "--messages", "{folder}/note.txt"], "is not JSON"),
        (["{folder}/image.png", "--messages", "{folder}/number.json"], "a JSON list"),
        (["{folder}/image.png", "--messages", "{folder}/chat.json"], "names images"),
        (["--messages", "{folder}/chat.json", "--prompt", "what ?"], "leave out one of them"),
        (["--messages", "{folder}/blind.json"], "has no image"),
        (["{folder}/image.png", "--video", "{folder}"], "got --video and images"),
        (["--video", "{folder}/absent"], "there is no video"),
        (["--video", "{folder}", "--explained", "0"], "all frames of a video"),
        (["--video", "{folder}"], "decompression bomb"),
        (["--messages", "{folder}/chat.json", "--video", "{folder}"], "names images"),
        (["{folder}/bomb.png"], "decompression bomb"),
        (["{folder}/image.png", "--model", "{folder}/absent"], "there is no folder"),
        (["{folder}/image.png", "--model", "demo/absent"], "absent"),
        (["{folder}/image.png", "--model", "{folder}/weights"], "could not be loaded"),
        (["{folder}/image.png", "--model", "{folder}/tokenizer"], "could not be loaded"),
        pytest.param(
            ["{folder}/image.png", "--device", "cuda"],
            "could not be loaded on cuda",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_errors_are_one_line(
    arguments: list[str],
    message: str,
    folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    picture = write_image(tmp_path / "image.png", "RGB", (96, 96))
    Image.open(picture).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:700])
    (tmp_path / "note.txt").write_text("not an image")
    (tmp_path / "number.json").write_text("3")
    image, text = {"type": "image", "path": "image.png"}, {"type": "text", "text": "what ?"}
    for name, parts in (("chat", [image, text]), ("blind", [text])):
        chat = [{"role": "user", "content": parts}]
        (tmp_path / f"{name}.json").write_text(json.dumps(chat))
    Image.new("1", (20000, 20000)).save(tmp_path / "bomb.png")
    for folder, name in (("weights", "model.safetensors"), ("tokenizer", "tokenizer.json")):
        shutil.copytree(folders["llava"], tmp_path / folder)
        file = tmp_path / folder / name
        file.write_bytes(file.read_bytes()[:500])
    given = [part.format(folder=tmp_path) for part in arguments]
    defaults = ["--model", str(folders["llava"]), "--answer", "a", "--output", str(tmp_path / "o")]
    assert main(["explain", "--quiet", *defaults, *given]) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("captum-mllm: error: ")
    assert message in error


def test_bad_arguments_end_with_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["explain", "--scales", "1,x"],
        ["explain", "--scales", "0,1"],
        ["explain", "--scales", "nan"],
        ["explain", "--scales", "100"],
        [],
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "expected numbers above 0 and at most 8 with commas" in error
