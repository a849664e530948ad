"""One model in several runtimes: torch, and its ONNX export with and without transformers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.spec import BenchmarkError

TEXTS = (
    "The night train to Lisbon leaves at ten.",
    "When the store came back after the outage, every checkpoint was there.",
    "Training went on where it had stopped, on another machine, with the same numbers.",
    "Rain.",
    "Nobody had looked at the logs of that night, so nobody knew what had happened.",
    "A tokenizer that threads share silently gives wrong results.",
    "It took the team three days to find out that the clock of one worker was wrong.",
    "Where it is written down, it can be read.",
)
FIRST_NUMBERS = 4
_PROMPT, _VOCABULARY = 256, 30522
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


class OnnxModels:
    """Answers of a model, in the runtime that the row names.

    Args:
        bucket: Not used: nothing is stored.
        runtime: `onnx` or `torch`; for first answers `numpy`, `pipeline` or `torch`.
        io_binding: Whether an export that generates leaves keys and values in the runtime.
    """

    def __init__(self, bucket: str, *, runtime: str = "onnx", io_binding: bool = True) -> None:
        del bucket
        self._runtime = runtime
        self._io_binding = io_binding
        self._loaded: tuple[Any, Any] | None = None

    def prepare(self, directory: str, model: str, layers: int, small: bool) -> str:
        """Make a model (`minilm`, `classifier` or `decoder`), export it, and return where it is.

        With MiniLM's weights where `make env` has fetched them, else with random ones in its
        shape: the time that they take is the same.
        """
        from hfflows.export import export_onnx

        root = Path(directory)
        root.mkdir(parents=True)
        made = _minilm(root / "minilm", small=small)
        if model == "classifier":
            made = _classifier(made, root / "classifier")
        elif model == "decoder":
            made = _decoder(made, root / "decoder", layers=layers)
        export_onnx(made, f"{made}-onnx", backend="torchscript" if small else "auto")
        return str(made)

    def embed(self, model: str) -> list[float]:
        """Return the first numbers of what the encoder says of a batch of 8 texts."""
        import torch

        loaded, inputs = self._loaded or self._load_encoder(model)
        self._loaded = loaded, inputs
        with torch.inference_mode():
            hidden = loaded(**inputs).last_hidden_state
        numbers: list[float] = hidden[0, 0, :FIRST_NUMBERS].tolist()
        return numbers

    def generate(self, model: str, tokens: int) -> list[int]:
        """Return the tokens that follow a long prompt."""
        import torch

        loaded, prompt = self._loaded or self._load_decoder(model)
        self._loaded = loaded, prompt
        with torch.inference_mode():
            found = loaded.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                min_new_tokens=tokens,
                max_new_tokens=tokens,
            )
        generated: list[int] = found[0, prompt.shape[1] :].tolist()
        return generated

    def first_answer(self, model: str) -> list[Any]:
        """Return the answer to one text, given by a process that began with this call."""
        directory = model if self._runtime == "torch" else f"{model}-onnx"
        module = "benchmarks.contenders.first_answer"
        done = subprocess.run(  # noqa: S603 - this Python, a module of ours
            [sys.executable, "-m", module, self._runtime, directory, TEXTS[0]],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BenchmarkError(done.stderr.strip().splitlines()[-1])
        label, score = done.stdout.split()
        return [label, float(score)]

    def _load_encoder(self, model: str) -> tuple[Any, Any]:
        from transformers import AutoModel, AutoTokenizer

        from hfflows.export import load_onnx_model

        tokenizer = AutoTokenizer.from_pretrained(model)
        inputs = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
        if self._runtime == "torch":
            return AutoModel.from_pretrained(model).eval(), inputs
        return load_onnx_model(f"{model}-onnx")[0], inputs

    def _load_decoder(self, model: str) -> tuple[Any, Any]:
        import torch
        from transformers import AutoModelForCausalLM

        from hfflows.export import load_onnx_model

        torch.manual_seed(0)
        prompt = torch.randint(1000, _VOCABULARY, (1, _PROMPT))
        if self._runtime == "torch":
            return AutoModelForCausalLM.from_pretrained(model).eval(), prompt
        loaded, _ = load_onnx_model(f"{model}-onnx")
        loaded.io_binding = self._io_binding
        return loaded, prompt


def _minilm(directory: Path, *, small: bool) -> Path:
    from demo.material import extract_base_model

    directory.mkdir()
    with suppress(FileNotFoundError):
        return extract_base_model(directory)
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    layers, width = (2, 64) if small else (6, 384)
    config = BertConfig(
        vocab_size=_VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4 if small else 12,
        intermediate_size=4 * width,
    )
    BertModel(config).save_pretrained(directory)
    _write_tokenizer(directory)
    return directory


def _write_tokenizer(directory: Path) -> None:
    """Write one of words that knows none but those above: only its speed matters."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = sorted({word for text in TEXTS for word in text.split()})
    vocabulary = {word: index for index, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106 - a word
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(directory)


def _classifier(minilm: Path, directory: Path) -> Path:
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=4)
    model.save_pretrained(directory)
    return _with_tokenizer(minilm, directory)


def _decoder(minilm: Path, directory: Path, *, layers: int) -> Path:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=_VOCABULARY, n_embd=384, n_layer=layers, n_head=6, n_positions=1024
    )
    GPT2LMHeadModel(config).save_pretrained(directory)
    return _with_tokenizer(minilm, directory)


def _with_tokenizer(source: Path, directory: Path) -> Path:
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)
    return directory
