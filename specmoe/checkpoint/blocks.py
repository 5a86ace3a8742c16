"""The blocks of ggml, as GGUF files hold them, become numbers.

Comes in: the bytes of some rows. Goes out: float32, bit-equal to ``gguf.quants.dequantize`` (so its
order of operations is kept); ``formats`` lists these with the other low-bit formats. In a block of
a K type 256 weights share factors, in the others 32. The rarer types that index tables of points
are widened by that package itself, on the processor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..errors import CheckpointError

Blocks = torch.Tensor  # [n, bytes of a block], uint8
# twice what FP4 stands for
FP4_LEVELS = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def _half(blocks: Blocks, at: int) -> torch.Tensor:
    """The float16 from byte ``at`` of each block, as ``[n, 1]``."""
    return blocks[:, at : at + 2].view(torch.float16).float()


def _fields(content: torch.Tensor, bits: int, width: int) -> torch.Tensor:
    """``[n, k]`` bytes, in each as many numbers as fit -> ``[n, all of them]``: of every ``width``
    bytes first the lowest bits."""
    groups = content.unflatten(1, (-1, 1, width))
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=content.device)
    return ((groups >> shifts[:, None]) & ((1 << bits) - 1)).flatten(1)


def _scaled(factors: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """``[n, f]`` factors times ``[n, f * as many each]`` integers."""
    return factors[..., None] * whole.float().unflatten(1, (factors.shape[1], -1))


def q4_0(blocks: Blocks) -> torch.Tensor:
    return _scaled(_half(blocks, 0), _fields(blocks[:, 2:], 4, 16).to(torch.int8) - 8)


def q4_1(blocks: Blocks) -> torch.Tensor:
    return _scaled(_half(blocks, 0), _fields(blocks[:, 4:], 4, 16)) + _half(blocks, 2)[..., None]


def _five(blocks: Blocks, at: int) -> torch.Tensor:
    """Numbers of five bits: the fifth ones first, in four bytes."""
    fifth = _fields(blocks[:, at : at + 4], 1, 1)
    return _fields(blocks[:, at + 4 :], 4, 16) | fifth << 4


def q5_0(blocks: Blocks) -> torch.Tensor:
    return _scaled(_half(blocks, 0), _five(blocks, 2).to(torch.int8) - 16)


def q5_1(blocks: Blocks) -> torch.Tensor:
    return _scaled(_half(blocks, 0), _five(blocks, 4)) + _half(blocks, 2)[..., None]


def q8_0(blocks: Blocks) -> torch.Tensor:
    return _half(blocks, 0) * blocks[:, 2:].view(torch.int8)


def q2_k(blocks: Blocks) -> torch.Tensor:
    scales = blocks[:, :16]
    factors = _half(blocks, 80) * (scales & 15).float()
    least = _half(blocks, 82) * (scales >> 4).float()
    return _scaled(factors, _fields(blocks[:, 16:80], 2, 32)) - least[..., None]


def q3_k(blocks: Blocks) -> torch.Tensor:
    low, high = _fields(blocks[:, 96:104], 4, 8), _fields(blocks[:, 104:108], 2, 4)
    scales = (low | high << 4).to(torch.int8) - 32
    # the bit of a number that is not lowered by four is set
    lowered = (_fields(blocks[:, :32], 1, 32) ^ 1) << 2
    whole = _fields(blocks[:, 32:96], 2, 32).to(torch.int8) - lowered.to(torch.int8)
    return _scaled(_half(blocks, 108) * scales.float(), whole)


def _six(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight factors and eight minima of six bits, in twelve bytes."""
    first, second, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    factors = torch.cat([first & 63, rest & 15 | (first >> 2) & 48], 1)
    return factors.float(), torch.cat([second & 63, rest >> 4 | (second >> 2) & 48], 1).float()


def _with_minima(blocks: Blocks, whole: torch.Tensor) -> torch.Tensor:
    factors, least = _six(blocks[:, 4:16])
    return _scaled(_half(blocks, 0) * factors, whole) - (_half(blocks, 2) * least)[..., None]


def q4_k(blocks: Blocks) -> torch.Tensor:
    return _with_minima(blocks, _fields(blocks[:, 16:], 4, 32))


def q5_k(blocks: Blocks) -> torch.Tensor:
    fifth = _fields(blocks[:, 16:48], 1, 32)
    return _with_minima(blocks, _fields(blocks[:, 48:], 4, 32) | fifth << 4)


def q6_k(blocks: Blocks) -> torch.Tensor:
    low, high = _fields(blocks[:, :128], 4, 64), _fields(blocks[:, 128:192], 2, 32)
    factors = _half(blocks, 208) * blocks[:, 192:208].view(torch.int8).float()
    return _scaled(factors, (low | high << 4).to(torch.int8) - 32)


def _levels(content: torch.Tensor, table: tuple[int, ...] = IQ4_LEVELS) -> torch.Tensor:
    levels = torch.tensor(table, dtype=torch.float32, device=content.device)
    return levels[_fields(content, 4, 16).int()]


def iq4_nl(blocks: Blocks) -> torch.Tensor:
    return _scaled(_half(blocks, 0), _levels(blocks[:, 2:]))


def iq4_xs(blocks: Blocks) -> torch.Tensor:
    low, high = _fields(blocks[:, 4:8], 4, 1), _fields(blocks[:, 2:4], 2, 1)
    scales = (low | high << 4).to(torch.int8) - 32
    return _scaled(_half(blocks, 0) * scales.float(), _levels(blocks[:, 8:]))


def ggml_mxfp4(blocks: Blocks) -> torch.Tensor:
    halves = torch.pow(2.0, blocks[:, :1].int() - 128)
    return _scaled(halves, _levels(blocks[:, 1:], FP4_LEVELS))


def kind_of(format: str) -> str:
    """What ggml calls it; its MXFP4 lies otherwise than that of safetensors."""
    return format.removeprefix("ggml_").upper()


def library_type(format: str, where: str) -> Any:
    """The type as the package ``gguf`` has it, which has to be there and know it."""
    try:
        from gguf import GGMLQuantizationType

        return GGMLQuantizationType[kind_of(format)]
    except (ImportError, KeyError):
        what = f"{where} is of the ggml type {kind_of(format)}, which takes the package gguf"
        raise CheckpointError(f"{what}: pip install -U 'specmoe[gguf]'") from None


def _by_library(name: str) -> Callable[[Blocks], torch.Tensor]:
    def widen(blocks: Blocks) -> torch.Tensor:
        kind = library_type(name, "an expert")
        from gguf.quants import dequantize

        return torch.from_numpy(dequantize(blocks.cpu().numpy(), kind)).to(blocks.device)

    widen.__name__ = name
    return widen


# ggml's number of a type -> how it is widened (the name is that of the function), weights and bytes
# of a block
TYPES = {
    2: (q4_0, 32, 18),
    3: (q4_1, 32, 20),
    6: (q5_0, 32, 22),
    7: (q5_1, 32, 24),
    8: (q8_0, 32, 34),
    10: (q2_k, 256, 84),
    11: (q3_k, 256, 110),
    12: (q4_k, 256, 144),
    13: (q5_k, 256, 176),
    14: (q6_k, 256, 210),
    20: (iq4_nl, 32, 18),
    23: (iq4_xs, 256, 136),
    39: (ggml_mxfp4, 32, 17),
}
# name, weights and bytes of a block of the types that ``gguf`` widens
LIBRARY = {
    16: ("iq2_xxs", 256, 66),
    17: ("iq2_xs", 256, 74),
    18: ("iq3_xxs", 256, 98),
    19: ("iq1_s", 256, 50),
    21: ("iq3_s", 256, 110),
    22: ("iq2_s", 256, 82),
    29: ("iq1_m", 256, 56),
    34: ("tq1_0", 256, 54),
    35: ("tq2_0", 256, 66),
}
TYPES |= {number: (_by_library(name), *sizes) for number, (name, *sizes) in LIBRARY.items()}


def _of_rows(widen_blocks: Callable[[Blocks], torch.Tensor], size: int):
    def widen(content: torch.Tensor) -> torch.Tensor:
        """``[..., bytes of a row]`` -> ``[..., columns]``."""
        return widen_blocks(content.reshape(-1, size)).reshape(*content.shape[:-1], -1)

    return widen


WIDEN = {made.__name__: _of_rows(made, size) for made, _, size in TYPES.values()}
