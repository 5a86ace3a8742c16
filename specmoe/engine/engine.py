"""What a user holds: a model whose experts lie in slow memory.

``load`` puts the rooms together (checkpoint -> store -> pool -> experts function -> decoder);
``Engine.generate`` sends prompts through ``speculate.decode`` and gives back tokens, texts, stats
and a trace.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from typing_extensions import Unpack  # typing's own begins with Python 3.11

from .. import checkpoint
from ..checkpoint import adapters
from ..errors import SpecMoEError
from ..model.inputs import one_of
from ..model.kernels import ExpertKernel, compiler_works
from ..model.recurrent import decoder_of
from ..model.seq2seq import Seq2SeqDecoder
from ..model.stored import keep_stored, multiplies_stored, trunk_weights
from ..model.texts import load_tokenizer
from ..offload.affinity import expert_distances
from ..offload.base_store import ExpertStore
from ..offload.budget import MemoryPlan, plan_memory
from ..offload.installed import OffloadedExperts
from ..offload.store import open_store
from ..offload.transfers import allocate_slots, give_back_memory
from ..options import (
    FOUND_BY,
    GenerateOptions,
    LoadOptions,
    check_device,
    from_kwargs,
    parse_bytes,
    torch_dtype,
)
from ..speculate.loop import Sequence
from ..trace import Trace
from .exactness import ExactReport, compare_methods
from .methods import make_method
from .output import Output
from .prepare import CALIBRATION, Reader, prepare
from .run import Run, Turns, held
from .shown import Shown
from .typed import GenerateArguments, LoadArguments, lists_generate, lists_load


@lists_load
def load(model: str | Path, **options: Unpack[LoadArguments]) -> Engine:
    """Load ``model`` (a shipped name, a local Hugging Face folder, a GGUF file, or a hub id) with
    its experts in slow memory.

    An unknown option raises ``OptionError``. Raises ``CheckpointError``, ``UnsupportedModelError``,
    ``FastMemoryError`` or ``StoreError``; nothing is left open then.
    """
    return Engine(model, from_kwargs(LoadOptions, options))


class Engine(Shown):
    """A loaded model. ``generate`` may be called any number of times, one at a time; each call
    starts with an empty pool, so no call depends on earlier ones. ``close`` (or leaving the
    ``with`` block) ends every thread and frees files and buffers."""

    def __init__(self, model: str | Path, options: LoadOptions):
        self.name = str(model)
        self.options = options
        self.turns = Turns()
        self.hotness: list[list[int]] | None = None  # [L][E] tokens of a calibration run
        check_device(options.device)
        path = checkpoint.resolve(model, **{name: getattr(options, name) for name in FOUND_BY})
        with checkpoint.unchanged(path):
            self.model = _model(path, options)
            # before anything is packed: this refuses models that cannot be rolled back
            is_translation = bool(self.model.config.is_encoder_decoder)
            self.decoder = (Seq2SeqDecoder if is_translation else decoder_of)(self.model)
            self.packed = _packed(path, options)
            tokenizer = load_tokenizer(path, self.model.config.model_type)
        self.reader = Reader(self.model, self.decoder, tokenizer)
        self.experts = _experts(self.model, self.packed, options)
        self.memory = _memory(self.experts, self.packed, options)
        self.store: ExpertStore | None = _store(self.packed, options)
        try:
            self.slots: torch.Tensor | None = allocate_slots(self.memory.num_slots, self.store)
            hidden_size, first = self.decoder.config.hidden_size, self.experts.modules[0]
            self.experts.kernel.calibrate(first, self.slots[0], hidden_size)
            self.decoder.passes.reads_stored = multiplies_stored(self.model, self.experts.kernel)
            self.experts.install()
            if self.compiled:
                self.decoder.passes.compile(options.compile)
            give_back_memory()
        except BaseException:
            self.store.close()
            raise

    @property
    def tokenizer(self):
        """The checkpoint's tokenizer; None where there is none that can be used."""
        return self.reader.tokenizer

    @property
    def is_translation(self) -> bool:
        return isinstance(self.decoder, Seq2SeqDecoder)

    @property
    def compiled(self) -> bool:
        return self.experts.compiled

    # ---- decoding ----

    @lists_generate
    def generate(
        self,
        prompts=None,
        *,
        attention_mask=None,
        input_ids=None,
        inputs=None,
        **options: Unpack[GenerateArguments],
    ) -> Output:
        """Continue ``prompts`` (texts, chats, lists of ids, or ids [B, T] with ``attention_mask``;
        also as ``**`` of what a tokenizer returns) -> ``Output``, one sequence per prompt, or
        ``num_return_sequences``.

        transformers' generation settings (docs/generation.md) are options, too. Greedy output
        equals plain greedy decoding; sampled output has the target's distribution. Raises
        ``OptionError`` for bad input, ``StoreError`` when a record cannot be read (the engine can
        be used again), ``FastMemoryError`` when the KV cache outgrows memory.
        """
        prompts = one_of(prompts, input_ids, inputs)
        with self.start(prompts, attention_mask=attention_mask, **options) as run:
            return run.output()

    @lists_generate
    def start(self, prompts, *, attention_mask=None, **options: Unpack[GenerateArguments]) -> Run:
        """What ``generate`` does, in the open: ``with engine.start(prompts) as run: for round in
        run: ...``, then ``run.output()``. Reads and checks everything now; holds the engine from
        ``with`` on."""
        self.check_open()
        with self.turns.taken():
            pass
        return Run(self, prepare(self, prompts, attention_mask, options))

    def check_open(self) -> ExpertStore:
        """The store, which a closed engine has no more."""
        if self.store is None:
            raise SpecMoEError("the engine is closed: load it again")
        return self.store

    # ---- calibration and self-check ----

    def calibrate(
        self, prompts, max_new_tokens: int = CALIBRATION["max_new_tokens"], **languages
    ) -> list[list[int]]:
        """Count expert use over a plain run: tokens [L][E]. "static" and "hot_global" stand on
        it."""
        options = {"method": "cached", "eviction": "temporal", "eos_token_id": [], **languages}
        with self.start(prompts, max_new_tokens=max_new_tokens, **options) as run:
            run.output()
            self.hotness = run.batch.experts.totals
        return self.hotness

    def check_exact(self, prompts, max_new_tokens: int = 64, **options) -> ExactReport:
        """transformers' own greedy ``generate`` on the checkpoint against every method, each prompt
        alone; plain decoding where the whole model does not fit into memory (the report says
        which). First divergences with both logits."""
        return compare_methods(self, prompts, max_new_tokens, **options)

    @torch.inference_mode()
    def next_logits(self, tokens: list[int], source: list[int] | None = None) -> torch.Tensor:
        """The full model's logits [V] for the token after ``tokens`` (encoder-decoder: the
        decoder's, given ``source``)."""
        method = make_method(GenerateOptions(method="on_demand"), self.memory, self.packed, None)
        with held(self, method, Trace(enabled=False)) as experts:
            self.decoder.allocate(1, len(tokens) + 1)
            first = len(tokens) - 1 if source is None else 0
            row = Sequence(0, tokens if source is None else tokens[:1], len(tokens), source=source)
            with experts.prefilling():
                self.decoder.add_row(0, self.decoder.prefill([row], experts.set_live)[0])
            with experts.verifying(None):
                return self.decoder.forward(torch.tensor([tokens[first:]]), torch.tensor([first]))[
                    0, -1
                ]

    # ---- facts and the end ----

    @property
    def info(self) -> dict[str, Any]:
        """What was loaded."""
        layout, memory = self.packed.layout, self.memory
        trunk = trunk_weights(self.model)
        return {
            "name": Path(self.name).name,
            "architecture": self.model.config.model_type,
            "layers": len(self.packed.layers),
            "experts": self.packed.num_experts,
            "top_k": getattr(self.decoder.config, "num_experts_per_tok", None)
            or adapters.top_k(self.model.config),
            "expert_bytes": layout.payload_bytes,
            "record_bytes": layout.record_bytes,
            "widened_from": self.packed.widened_from,
            "expert_dtype": layout.stored_as,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": str(self.options.device),
            "draft_experts": memory.draft_experts,
            "fast_memory_bytes": memory.fast_memory_bytes,
            "used_bytes": memory.used_bytes,
            "slots": memory.num_slots,
            "cached_experts": memory.cached_experts,
            "trunk_bytes": sum(tensor.nbytes for tensor in trunk),
            "trunk_weights": sum(tensor.numel() for tensor in trunk),
        }

    @property
    def store_info(self) -> dict[str, Any]:
        return self.check_open().info()

    def close(self) -> None:
        """End every thread, close files, free buffers. Calling it twice is fine; while a call goes
        on it is refused. Returns within ``CLOSE_S`` (``offload.base_store``) even where a disk
        hangs: a ``RuntimeWarning`` names the read, whose buffers are freed when it comes back."""
        if self.turns.is_taken():
            raise SpecMoEError(
                "the engine is in use: end the call that goes on before you close it"
            )
        if self.store is not None:
            self.experts.uninstall()
            # First let go, so that nothing is held where closing is cut short.
            store, self.store, self.slots = self.store, None, None
            store.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def _model(path: Path, options: LoadOptions):
    """All but the experts. In float32 on a CPU large matrices stay as they are stored;
    torch.compile could not look into their products."""
    dtype, device = torch_dtype(options.dtype), str(options.device)
    keep = device == "cpu" and dtype in (None, torch.float32) and not options.compile
    model = checkpoint.build_model(path, dtype, device, keep)
    if keep:
        keep_stored(model)
    return model


def _packed(path: Path, options: LoadOptions) -> checkpoint.PackedExperts:
    num_bytes = parse_bytes("expert_bytes", options.expert_bytes)
    found = checkpoint.open_experts(path, options.store, num_bytes)
    return cast(checkpoint.PackedExperts, found)  # those in place have the same parts


def _experts(model, packed: checkpoint.PackedExperts, options: LoadOptions) -> OffloadedExperts:
    """The experts function of ``model``; distances between experts are computed once."""
    modules = checkpoint.expert_modules(model)
    is_translation = model.config.is_encoder_decoder
    num_encoder = sum(".encoder." in f".{name}" for name in modules) if is_translation else 0
    distances = expert_distances(packed)
    compiled = bool(options.compile) and compiler_works(options.device)
    # on a CPU padding costs more than compiling gains
    on_gpu = compiled and str(options.device) != "cpu"
    kernel = ExpertKernel(packed.layout, model.dtype, options.device, compile=on_gpu)
    return OffloadedExperts(model, modules, kernel, distances, num_encoder, compiled)


def _memory(
    experts: OffloadedExperts, packed: checkpoint.PackedExperts, options: LoadOptions
) -> MemoryPlan:
    scratch_bytes = ExpertKernel.scratch_bytes(packed.layout, experts.model.dtype)
    shape = len(experts.draft_layers), packed.num_experts
    slot_bytes = packed.layout.record_bytes + packed.slack_bytes
    return plan_memory(slot_bytes, scratch_bytes, shape, options)


def _store(packed: checkpoint.PackedExperts, options: LoadOptions) -> ExpertStore:
    reading = {name: getattr(options, name) for name in ("link_bytes_per_s", "num_readers")}
    return open_store(options.store, packed, options.device, **reading)
