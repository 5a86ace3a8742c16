"""Shows a run while it runs: a streamer for one prompt, a progress bar or a callback for many.

Comes in: the rows after every round. Goes out: finished rows in the order of the prompts.
``run`` calls this.
"""

from __future__ import annotations

import torch

from ..errors import OptionError
from ..options import GenerateOptions
from ..speculate.loop import Sequence


class Watcher:
    """Collects finished rows; feeds ``streamer`` (transformers' protocol: put, end) and
    ``progress`` (True for a bar, or a function of (finished prompts, prompts))."""

    def __init__(self, options: GenerateOptions, prompts: list[list[int]]):
        if options.streamer is not None and len(prompts) != 1:
            raise OptionError(
                f"streamer shows one prompt, and {len(prompts)} were given: use progress=True"
            )
        self._rows: dict[int, Sequence] = {}
        self._num_prompts = len(prompts)
        self._streamer = options.streamer
        self._shown = len(prompts[0]) if prompts else 0
        self._callback = None
        self._bar = None
        if options.progress is True:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=len(prompts), unit="prompt", leave=False)
        elif callable(options.progress):
            self._callback = options.progress
        if self._streamer is not None:
            self._streamer.put(torch.tensor(prompts[0]))

    @property
    def finished(self) -> list[Sequence]:
        return [self._rows[prompt] for prompt in sorted(self._rows)]

    def see(self, rows: list[Sequence]) -> None:
        """Rows in flight after a round."""
        done = {row.prompt: row for row in rows if row.finished}
        self._rows.update(done)
        if self._streamer is not None:
            self._streamer.put(torch.tensor(rows[0].tokens[self._shown :]))
            self._shown = len(rows[0].tokens)
        if done and self._bar is not None:
            self._bar.update(len(done))
        if done and self._callback is not None:
            self._callback(len(self._rows), self._num_prompts)

    def close(self) -> None:
        if self._streamer is not None:
            self._streamer.end()
        if self._bar is not None:
            self._bar.close()
