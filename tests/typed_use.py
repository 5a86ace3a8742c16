"""A user's program, which type checkers find nothing wrong with (make lint, test_typed)."""

from __future__ import annotations

import specmoe
from specmoe.engine.output import Output
from specmoe.engine.typed import GenerateArguments

OPTIONS: GenerateArguments = {
    "max_new_tokens": 8,
    "method": "specmoe",
    "gamma": 4,
    "repetition_penalty": 1.1,
}


def main() -> list[str]:
    with specmoe.load("tiny-skewed", store="disk", fast_memory="2MiB", dtype="auto") as engine:
        output: Output = engine.generate(["The "], **OPTIONS)
        with engine.start(["A small "], max_new_tokens=4) as run:
            tokens = sum(each.new_tokens for each in run)
        rate: float = output.stats.tokens_per_second
        print(engine, run, output.trace, tokens, rate)
        specmoe.custom_generate(engine, seed=1)
    return output.texts
