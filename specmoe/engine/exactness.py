"""Is the output exact? Every method against transformers' own ``generate``, and where they part, by
how little.

Comes in: a loaded engine and prompts. Goes out: an ``ExactReport``. ``Engine.check_exact`` calls
this. The reference reads the checkpoint from disk by itself, so stale experts or settings that
specmoe ignores show as a difference.
"""

from __future__ import annotations

import copy
import dataclasses
import html
import math
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import is_accelerate_available

from ..checkpoint.gguf_file import config_of
from ..checkpoint.gguf_header import files_of, read_gguf
from .ties import SIXTEEN_BITS, is_tie, tie_before, tie_of_sums

METHODS = ("on_demand", "overlapped", "cached", "specmoe", "resident")
# NllbMoeExperts.forward takes one-hot of a mask that is one-hot already, so other experts run than
# were routed to.
NO_REFERENCE = {"nllb-moe": "transformers runs other experts of nllb-moe than it routes to"}
SHARE_OF_MEMORY = 0.8


@dataclass(frozen=True)
class Divergence:
    """The first token where a method left the reference, and the reference's logits of its own
    token and of the method's.

    ``is_tie``: rounding alone decides, since in bfloat16 or float16 the two logits are within 2
    ulp, or for what ``why`` says.
    """

    method: str
    prompt: int
    position: int
    plain_token: int | None
    token: int | None
    logits: tuple[float, float]
    is_tie: bool = False
    why: str = ""

    @property
    def logit_gap(self) -> float:
        return self.logits[0] - self.logits[1]

    def __str__(self) -> str:
        return (
            f"{self.method}: prompt {self.prompt}, position {self.position}: token {self.token} "
            f"(logit {self.logits[1]:.6g}) instead of {self.plain_token} (logit "
            f"{self.logits[0]:.6g})" + (f", {self.why}" if self.why else "")
        )


@dataclass(frozen=True)
class ExactReport:
    """Which methods gave the reference's tokens. True in a condition when all did, ties not
    excused."""

    num_prompts: int
    num_tokens: int
    methods: tuple[str, ...]
    divergences: tuple[Divergence, ...]
    reference: str = "plain decoding"

    def __bool__(self) -> bool:
        return not self.divergences

    @property
    def verdict(self) -> str:
        """ "exact", "exact up to proved ties" or "differs"."""
        if self:
            return "exact"
        return "exact up to proved ties" if all(d.is_tie for d in self.divergences) else "differs"

    def __str__(self) -> str:
        line = (
            f"{self.verdict}: {len(self.methods)} methods, {self.num_prompts} prompts, "
            f"{self.num_tokens} tokens each, against {self.reference}"
        )
        if self:
            return line
        # what is not proved, else what took the longest proof
        worst = min(self.divergences, key=lambda d: (d.is_tie, not d.why))
        return f"{line}; {len(self.divergences)} divergences, first {worst}"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


class TransformersReference:
    """transformers' own model of the checkpoint, read from disk, each prompt alone, with the
    checkpoint's settings."""

    def __init__(self, engine, **options):
        from ..checkpoint.model import auto_class

        auto = auto_class(engine.model.config)
        path, dtype = Path(engine.model.name_or_path), engine.model.dtype
        self.name = f"transformers' generate ({str(dtype).removeprefix('torch.')})"
        self.tokenizer = engine.tokenizer
        self.dtype = dtype
        model = (_of_gguf if path.is_file() else _of_folder)(auto, path, dtype)
        self.model = model.to(engine.options.device).eval()
        for module in self.model.modules():
            if hasattr(module, "config"):
                module.config._experts_implementation = "eager"
        self.settings = copy.deepcopy(self.model.generation_config)
        self.settings.update(do_sample=False, num_beams=1)
        for name in filter(partial(hasattr, self.settings), options):
            setattr(self.settings, name, None if options[name] == [] else options[name])
        # generate fills what is None in its argument from the model's own settings, an end token
        # taken away too.
        self.model.generation_config = self.settings

    def _run(self, prompt: list[int], source: list[int] | None, new_tokens: int, copies: int = 1):
        ids = torch.tensor([source or prompt] * copies, device=self.model.device)
        own = torch.tensor([prompt] * copies, device=ids.device)
        start = {} if source is None else {"decoder_input_ids": own}
        return self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            tokenizer=self.tokenizer,
            output_scores=True,
            return_dict_in_generate=True,
            **start,
        )

    def tokens(self, prompt: list[int], source: list[int] | None, new_tokens: int) -> list[int]:
        """The prompt and its greedy continuation."""
        return self._run(prompt, source, new_tokens).sequences[0].tolist()

    def logits(
        self, tokens: list[int], num_prompt: int, source: list[int] | None = None
    ) -> torch.Tensor:
        """Logits [V], after the settings' processors, of the token after ``tokens``."""
        steps = len(tokens) - num_prompt
        own = self._run(tokens[:num_prompt], source, steps + 1)
        # not its own text: read it as a prompt
        if own.sequences[0, : len(tokens)].tolist() != tokens:
            own, steps = self._run(tokens, source, 1), 0
        return own.scores[steps][0]

    def why_not(
        self, tokens: list[int], source: list[int] | None, token: int, logits: torch.Tensor
    ) -> str:
        """Why ``token``, which is not the first of ``logits`` [V], may stand after ``tokens`` all
        the same, "" if nothing proves it."""

        def read(copies: int = 1) -> torch.Tensor:
            return self._run(tokens, source, 1, copies).scores[0][0]

        if self.dtype == torch.float32:
            return tie_of_sums(self.model, read, token, logits)
        if source is not None or self.dtype not in SIXTEEN_BITS:
            return ""
        return tie_before(self.model, read, token, self.dtype)


def _of_folder(auto: type, path: Path, dtype: torch.dtype) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(path)
    if quantised := getattr(config, "quantization_config", None):
        quantised["dequantize"] = True
    model = auto.from_pretrained(path, config=config, dtype=dtype)
    # packed integers stay in the dtype of their scales there, which no other layer has
    for parameter in (p for p in model.parameters() if quantised and p.dim() == 3):
        parameter.data = parameter.data.to(dtype)
    return model


def _of_gguf(auto: type, path: Path, dtype: torch.dtype) -> PreTrainedModel:
    if not is_accelerate_available():
        raise ImportError("it takes the package accelerate for a GGUF")
    # an older transformers always dequantises
    how = getattr(transformers, "GgufConfig", None)
    options = {"quantization_config": how(dequantize=True)} if how else {}
    options |= {"config": config_of(read_gguf(path)), "gguf_file": path.name}
    return auto.from_pretrained(path.parent, dtype=dtype, **options)


class PlainReference:
    """specmoe's own ``on_demand``, one row at a time: says nothing about the checkpoint on disk."""

    def __init__(self, engine, why: str):
        self.engine = engine
        self.dtype = engine.model.dtype
        self.name = f"plain decoding ({why})"

    def logits(
        self, tokens: list[int], num_prompt: int, source: list[int] | None = None
    ) -> torch.Tensor:
        return self.engine.next_logits(tokens, source)


def choose_reference(engine, **options) -> TransformersReference | PlainReference:
    """transformers' own model where it is a reference and fits into memory beside the engine, else
    plain decoding."""
    kind = engine.model.config.model_type
    if kind in NO_REFERENCE:
        return PlainReference(engine, NO_REFERENCE[kind])
    # DIR/model, or a GGUF in it
    if engine.packed.directory in Path(engine.model.name_or_path).parents[:2]:
        return PlainReference(engine, "transformers reads no packed folder")
    if len(files_of(Path(engine.model.name_or_path))) > 1:
        return PlainReference(engine, "transformers reads no split GGUF")
    needed = sum(p.numel() for p in engine.model.parameters()) * engine.model.dtype.itemsize
    if needed > SHARE_OF_MEMORY * free_bytes(engine.options.device):
        return PlainReference(
            engine, f"the whole model needs {needed / 2**30:.1f} GiB, more than is free"
        )
    try:
        return TransformersReference(engine, **options)
    except ImportError as error:
        why = str(error).strip().split("\n")[0]
        return PlainReference(engine, f"transformers cannot read the checkpoint here: {why}")


def free_bytes(device="cpu") -> int:
    """Bytes that a program may still take: of the device, or of this machine."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as lines:
            available = next(line for line in lines if line.startswith("MemAvailable"))
            return 1024 * int(available.split()[1])
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def compare_methods(
    engine, prompts, max_new_tokens: int = 64, methods=METHODS, **options
) -> ExactReport:
    """Greedy output of every method against the reference, each prompt alone."""
    run = {"max_new_tokens": max_new_tokens, **options}
    plain = engine.generate(prompts, method="on_demand", batch_size=1, **run)
    reference = choose_reference(engine, **options)
    rows = [row.tolist() for row in plain.sequences]
    if isinstance(reference, TransformersReference):
        starts = zip(rows, plain.num_prompt_tokens, plain.sources, strict=True)
        # An encoder-decoder's limit counts all but the start token, a language token too.
        limits = [1 if engine.is_translation else n for n in plain.num_prompt_tokens]
        expected = [
            reference.tokens(row[:n], source, limit + max_new_tokens - n)
            for (row, n, source), limit in zip(starts, limits, strict=True)
        ]
    else:
        expected = rows
    divergences = []
    for method in methods:
        output = engine.generate(prompts, method=method, **run)
        for prompt, got in enumerate(output.sequences):
            if expected[prompt] != got.tolist():
                at = method, prompt, plain.num_prompt_tokens[prompt], plain.sources[prompt]
                divergences.append(first_divergence(reference, at, expected[prompt], got.tolist()))
    made = sum(len(row) for row in expected) - sum(plain.num_prompt_tokens)
    return ExactReport(len(rows), made, tuple(methods), tuple(divergences), reference.name)


def first_divergence(reference, at: tuple, expected: list[int], got: list[int]) -> Divergence:
    """Where ``got`` leaves ``expected``; ``at`` is method, prompt, length of the prompt, source."""
    method, prompt, num_prompt, source = at
    pairs = zip(expected, got, strict=False)
    position = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(expected), len(got)))
    tokens = [row[position] if position < len(row) else None for row in (expected, got)]
    if None in tokens or position < num_prompt:
        return Divergence(method, prompt, position, *tokens, (math.nan, math.nan))
    logits = reference.logits(expected[:position], num_prompt, source)
    pair = tuple(float(logits[token]) for token in tokens)
    # Two wrong tokens may be as good as each other.
    ties = [is_tie(max(pair), other, reference.dtype) for other in (*pair, float(logits.max()))]
    found = Divergence(method, prompt, position, *tokens, pair, all(ties))
    if found.is_tie or not isinstance(reference, TransformersReference):
        return found
    less_liked = min(tokens, key=lambda token: float(logits[token]))
    why = reference.why_not(expected[:position], source, less_liked, logits)
    return dataclasses.replace(found, is_tie=bool(why), why=why)
