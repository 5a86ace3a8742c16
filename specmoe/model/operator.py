"""The experts function as an operator that ``torch.compile`` can trace around."""

from __future__ import annotations

import weakref
from functools import cache

import torch

# number -> OffloadedExperts: operators take no objects
_installed: weakref.WeakValueDictionary = weakref.WeakValueDictionary()


def number_of(experts) -> int:
    """The number under which the operator finds ``experts`` as long as it lives."""
    _installed[id(experts)] = experts
    return id(experts)


@cache
def experts_operator():
    """The experts function as one operator, so that ``torch.compile`` can trace a whole model
    around it: which experts and which reads depends on data, and stays plain Python.
    ``specmoe::experts(number, layer, hidden [T, D], index [T, K], weights [T, K]) -> [T, D]``,
    registered once."""

    def run(
        number: int, layer: int, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        return _installed[number].forward(layer, hidden, index, weights).contiguous()

    run.__annotations__ = {
        "number": int,
        "layer": int,
        "hidden": torch.Tensor,
        "index": torch.Tensor,
        "weights": torch.Tensor,
        "return": torch.Tensor,
    }
    # it reads what the GPU computed, and so can be no part of a graph that is replayed
    tag = getattr(torch.Tag, "cudagraph_unsafe", None)
    marks = {"tags": (tag,)} if tag is not None else {}
    operator = torch.library.custom_op("specmoe::experts", run, mutates_args=(), **marks)
    operator.register_fake(lambda number, layer, hidden, index, weights: torch.empty_like(hidden))
    return operator
