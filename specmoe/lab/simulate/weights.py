"""How many bytes a weight matrix takes as it is stored: bf16, block FP8, MXFP4, groups of int4.

Comes in: the name of a format, or a config's ``quantization_config``. Goes out: a ``WeightFormat``.
``parameters`` calls next.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ...errors import OptionError, nearest


@dataclass(frozen=True)
class WeightFormat:
    """Bits of a weight, and bits of what each block of them shares (scale, zero point).

    ``block`` is (rows, columns), 0 standing for all; ``experts_only``: the other matrices stay
    bf16; so do always embeddings, output head, routers and vectors, and what ``kept`` names.
    """

    name: str
    bits: int
    block: tuple[int, int] = (0, 0)
    shared_bits: int = 0
    experts_only: bool = False
    kept: tuple[str, ...] = ()

    def num_bytes(self, shape: Iterable[int]) -> int:
        """Of a matrix, or of a stack of them (the last two sides are a matrix)."""
        *stack, rows, columns = shape
        of = zip((rows, columns), self.block)
        blocks = math.prod(math.ceil(side / (part or side)) for side, part in of)
        bits = rows * columns * self.bits + blocks * self.shared_bits
        return math.ceil(math.prod(stack) * bits / 8)

    def bytes_per_weight(self) -> float:
        """Of a large matrix, scales included."""
        return (self.bits + self.shared_bits / (math.prod(self.block) or math.inf)) / 8

    def keeps(self, name: str) -> bool:
        """Is the module ``name`` left in bf16?"""
        return any(re.search(pattern, name) for pattern in self.kept)


FORMATS = {
    each.name: each
    for each in (
        WeightFormat("fp32", 32),
        WeightFormat("bf16", 16),
        WeightFormat("int8", 8, (1, 0), 16),
        WeightFormat("fp8", 8, (128, 128), 32),
        # 4-bit floats; 32 of them share an exponent of 8 bits
        WeightFormat("mxfp4", 4, (1, 32), 8, experts_only=True),
        # as GPTQ and AWQ store them: 128 share a scale of 16 bits and a zero point of 4
        WeightFormat("int4", 4, (1, 128), 20),
        # of bitsandbytes: 64 share a scale of 32 bits
        WeightFormat("nf4", 4, (1, 64), 32),
    )
}
BF16 = FORMATS["bf16"]


def format_of(given: str | WeightFormat | None, quantization: dict | None = None) -> WeightFormat:
    """The format ``given``; None: that of ``quantization`` (a config's ``quantization_config``),
    or bf16."""
    if isinstance(given, WeightFormat):
        return given
    if given is None:
        return _published(quantization) if quantization else BF16
    if given not in FORMATS:
        raise OptionError(f"weights={given!r} is unknown: {nearest(given, FORMATS)}")
    return FORMATS[given]


def _published(config: dict) -> WeightFormat:
    method = config.get("quant_method")
    read = {
        "mxfp4": lambda config: FORMATS["mxfp4"],
        "fp8": _fp8,
        "gptq": _groups,
        "awq": _groups,
        "compressed-tensors": _compressed,
        "bitsandbytes": lambda config: FORMATS["nf4" if config.get("load_in_4bit") else "int8"],
    }.get(method)
    if read is None:
        raise OptionError(
            f"quantization_config has quant_method={method!r}, whose bytes are not known here: "
            f"say weights=..., one of {', '.join(FORMATS)}"
        )
    kept = config.get("modules_to_not_convert") or config.get("ignore") or ()
    return replace(read(config), kept=tuple(map(_pattern, kept)))


def _pattern(name: str) -> str:
    """Names in such lists are parts of names, with ``*``, or expressions after ``re:``."""
    return name[3:] if name.startswith("re:") else re.escape(name).replace(r"\*", ".*")


def _fp8(config: dict) -> WeightFormat:
    block = config.get("weight_block_size") or (0, 0)
    return replace(FORMATS["fp8"], block=tuple(block))


def _groups(config: dict) -> WeightFormat:
    bits, group = config.get("bits", 4), config.get("group_size", 128)
    return WeightFormat(f"int{bits}", bits, (1, max(0, group)), 16 + bits)


def _compressed(config: dict) -> WeightFormat:
    weights = next(iter(config["config_groups"].values()))["weights"]
    bits, group = weights.get("num_bits", 8), weights.get("group_size") or 0
    kind = "fp" if weights.get("type") == "float" else "int"
    block = tuple(weights.get("block_structure") or (1, group))
    return WeightFormat(f"{kind}{bits}", bits, block, 16)
