"""What a user holds: a model whose experts lie in slow memory.

``load`` puts the rooms together (checkpoint -> store -> pool -> experts function -> decoder);
``Engine.generate`` sends one job through ``speculate.decode`` and gives back tokens, texts, stats
and a trace.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import torch

from .. import checkpoint
from ..checkpoint import adapters
from ..errors import CheckpointError, OptionError, SpecMoEError
from ..model.decoder import CausalDecoder
from ..model.inputs import check_lengths, one_of, read_prompts
from ..model.kernels import ExpertKernel, compiler_works
from ..model.seq2seq import Seq2SeqDecoder
from ..model.texts import load_tokenizer, new_texts, to_texts
from ..model.translation import check_source_lengths, decoder_prompt, read_sources, refuse_languages
from ..offload.affinity import expert_distances
from ..offload.budget import plan_memory
from ..offload.installed import OffloadedExperts
from ..offload.policies import RunPolicy
from ..offload.pool import ResidentPool
from ..offload.slots import Slots
from ..offload.store import ExpertStore, open_store
from ..offload.transfers import allocate_slots
from ..options import GenerateOptions, LoadOptions, check_device, from_kwargs, torch_dtype
from ..speculate.loop import Sequence
from ..speculate.sampling import Sampler
from ..trace import Trace
from .exactness import ExactReport, compare_methods
from .methods import Method, make_method
from .output import Output, Stats
from .rules import Rules
from .run import Plan, Run, Turns, held
from .settings import end_tokens, gather

DEFAULT_BATCH_SIZE = 64
LONG_PACK_BYTES = 2**28
CALIBRATION = {"num_prompts": 8, "max_new_tokens": 24}


def load(model: str, **options) -> Engine:
    """Load ``model`` (a shipped name, a local Hugging Face folder, or a hub id) with its experts in
    slow memory.

    Options are those of ``options.LoadOptions``; an unknown one raises ``OptionError``. Raises
    ``CheckpointError``, ``UnsupportedModelError``, ``FastMemoryError`` or ``StoreError``; nothing
    is left open then.
    """
    return Engine(model, from_kwargs(LoadOptions, options))


class Engine:
    """A loaded model. ``generate`` may be called any number of times, one at a time; each call
    starts with an empty pool, so no call depends on earlier ones. ``close`` (or leaving the
    ``with`` block) ends every thread and frees files and buffers."""

    def __init__(self, model: str, options: LoadOptions):
        self.name = str(model)
        self.options = options
        self.turns = Turns()
        self.store: ExpertStore | None = None
        check_device(options.device)
        path = checkpoint.resolve(model, options.revision)
        with checkpoint.unchanged(path):
            self.model = checkpoint.build_model(path, torch_dtype(options.dtype), options.device)
            self.is_translation = bool(self.model.config.is_encoder_decoder)
            self.decoder = (Seq2SeqDecoder if self.is_translation else CausalDecoder)(self.model)
            modules = checkpoint.expert_modules(self.model)
            self.packed = checkpoint.pack(
                path, expert_bytes=options.expert_bytes, progress=_PackingBar()
            )
            # None, or why it cannot be used; ``tokenizer`` is the usable one.
            self._tokenizer = load_tokenizer(path)
        self.tokenizer = None if isinstance(self._tokenizer, CheckpointError) else self._tokenizer
        num_encoder_layers = (
            sum(".encoder." in f".{name}" for name in modules) if self.is_translation else 0
        )
        self.hotness: list[list[int]] | None = None  # [L][E] tokens of a calibration run
        layout = self.packed.layout
        self.memory = plan_memory(
            record_bytes=layout.record_bytes,
            scratch_bytes=ExpertKernel.scratch_bytes(layout, self.model.dtype),
            num_layers=len(self.packed.layers) - num_encoder_layers,
            num_experts=self.packed.num_experts,
            draft_experts=options.draft_experts,
            fast_memory=options.fast_memory,
            num_readers=options.num_readers,
        )
        distances = expert_distances(self.packed)
        self.compiled = options.compile and compiler_works(options.device)
        # on a CPU padding costs more than compiling gains
        on_gpu = self.compiled and str(options.device) != "cpu"
        kernel = ExpertKernel(layout, self.model.dtype, options.device, compile=on_gpu)
        self.experts = OffloadedExperts(self.model, modules, kernel, distances, num_encoder_layers)
        self.store = open_store(
            options.store,
            self.packed,
            options.device,
            options.link_bytes_per_s,
            options.num_readers,
        )
        try:
            self._slots = allocate_slots(self.memory.num_slots, self.store)
            kernel.calibrate(
                modules[next(iter(modules))], self._slots[0], self.decoder.config.hidden_size
            )
            self.experts.install(opaque=self.compiled)
            if self.compiled:
                self.decoder.passes.compile()
        except BaseException:
            self.store.close()
            raise

    # ---- decoding ----

    def generate(
        self, prompts=None, *, attention_mask=None, input_ids=None, inputs=None, **options
    ) -> Output:
        """Continue ``prompts`` (texts, chats, lists of ids, or ids [B, T] with ``attention_mask``;
        also as ``**`` of what a tokenizer returns) -> ``Output``, one sequence per prompt, or
        ``num_return_sequences``.

        Options are those of ``options.GenerateOptions``. Greedy output equals plain greedy
        decoding; sampled output has the target's distribution. Raises ``OptionError`` for bad
        input, ``StoreError`` when a record cannot be read (the engine can be used again),
        ``FastMemoryError`` when the KV cache outgrows memory.
        """
        prompts = one_of(prompts, input_ids, inputs)
        with self.start(prompts, attention_mask=attention_mask, **options) as run:
            return run.output()

    def start(self, prompts, *, attention_mask: torch.Tensor | None = None, **options) -> Run:
        """What ``generate`` does, in the open: ``with engine.start(prompts) as run: for round in
        run: ...``, then ``run.output()``. Reads and checks everything now; holds the engine from
        ``with`` on."""
        self.check_free()
        options.pop("token_type_ids", None)  # a tokenizer may add them; no model here reads them
        rules = Rules(self.model, self.tokenizer, from_kwargs(GenerateOptions, gather(options)))
        options = rules.options
        if outside := [
            token for token in end_tokens(options.eos_token_id) if token >= self.decoder.vocab_size
        ]:
            raise OptionError(
                f"eos_token_id={outside[0]} is outside the vocabulary of {self.decoder.vocab_size}"
            )
        rows = self._read(
            prompts, attention_mask, dataclasses.replace(options, max_new_tokens=rules.longest)
        )
        sampler = Sampler(options, warped=rules.give_rules(rows))
        rows = _copies(rows, options)
        batch_size = min(options.batch_size or DEFAULT_BATCH_SIZE, len(rows))
        max_block = self.decoder.largest_block(batch_size)
        method = make_method(
            options, self.memory, self.packed, self._hotness_for(options, rows), max_block
        )
        self.decoder.check_blocks(rows, batch_size, method.planner.max_gamma)
        eos = rules.eos.union(*(row.rules.eos for row in rows if row.rules))
        return Run(self, Plan(rows, options, method, sampler, batch_size, eos))

    def _read(self, prompts, attention_mask, options: GenerateOptions) -> list[Sequence]:
        if self.is_translation:
            return self._read_sources(prompts, attention_mask, options)
        refuse_languages(options.source_lang, options.target_lang, self.model.config.model_type)
        tokens = read_prompts(prompts, attention_mask, self._tokenizer, self.decoder.vocab_size)
        check_lengths(tokens, options.max_new_tokens, self.decoder.max_positions)
        new, first = options.max_new_tokens, options.first_prompt
        return [
            Sequence(first + index, list(row), len(row) + new) for index, row in enumerate(tokens)
        ]

    def _read_sources(self, prompts, attention_mask, options: GenerateOptions) -> list[Sequence]:
        """Rows of an encoder-decoder: as in transformers, ``max_new_tokens`` counts all but the
        start token."""
        sources = read_sources(
            prompts, attention_mask, self.tokenizer, self.decoder.vocab_size, options.source_lang
        )
        forced = options.own.get(
            "forced_bos_token_id", self.model.generation_config.forced_bos_token_id
        )
        start = decoder_prompt(
            self.decoder.start_token, forced, self.tokenizer, options.target_lang
        )
        check_source_lengths(
            sources, len(start), options.max_new_tokens, self.decoder.max_positions
        )
        limit, first = 1 + options.max_new_tokens, options.first_prompt
        return [
            Sequence(first + index, list(start), limit, source=source)
            for index, source in enumerate(sources)
        ]

    def check_open(self) -> None:
        if self.store is None:
            raise SpecMoEError("the engine is closed: load it again")

    def check_free(self) -> None:
        """``SpecMoEError`` unless a call could begin now."""
        self.check_open()
        with self.turns.taken():
            pass

    def new_pool(self, method: Method, trace: Trace) -> ResidentPool:
        """An empty pool as ``method`` wants it, over the engine's slots."""
        slots = (
            self._slots
            if method.num_slots is None
            else allocate_slots(method.num_slots, self.store)
        )
        return ResidentPool(
            self.store, Slots(slots), RunPolicy(method.rule, method.first_kept), method.mode, trace
        )

    def to_output(self, rows: list[Sequence], stats: Stats, trace: Trace) -> Output:
        with torch.inference_mode(False):  # tensors that a user may change or train on
            sequences = [torch.tensor(row.tokens) for row in rows]
        tokens, lengths = [row.tokens for row in rows], [row.num_prompt for row in rows]
        texts = to_texts(self.tokenizer, tokens)
        new = new_texts(self.tokenizer, tokens, lengths, texts)
        return Output(
            sequences,
            texts,
            new,
            lengths,
            stats,
            trace,
            [row.source for row in rows],
            self.tokenizer,
        )

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

    def _hotness_for(
        self, options: GenerateOptions, rows: list[Sequence]
    ) -> list[list[int]] | None:
        """Calibrates on the job's first prompts when a method needs it and nobody has."""
        static = options.method == "cached" and options.eviction == "static"
        hot_global = options.method in ("specmoe", "auto") and options.draft_set == "hot_global"
        if (static or hot_global) and self.hotness is None:
            room = (self.decoder.max_positions or 1 << 30) - max(row.num_prompt for row in rows)
            first = [row.source or row.tokens for row in rows[: CALIBRATION["num_prompts"]]]
            languages = {"target_lang": options.target_lang} if self.is_translation else {}
            self.calibrate(
                first, max_new_tokens=min(CALIBRATION["max_new_tokens"], room), **languages
            )
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
    def info(self) -> dict:
        """What was loaded."""
        layout, memory = self.packed.layout, self.memory
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
            "expert_dtype": str(layout.dtype).removeprefix("torch."),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": str(self.options.device),
            "draft_experts": memory.draft_experts,
            "fast_memory_bytes": memory.fast_memory_bytes,
            "used_bytes": memory.used_bytes,
            "slots": memory.num_slots,
            "cached_experts": memory.cached_experts,
            "trunk_bytes": sum(p.nbytes for p in self.model.parameters() if not p.is_meta),
        }

    @property
    def store_info(self) -> dict:
        return self.store.info()

    def close(self) -> None:
        """End every thread, close files, free buffers. Calling it twice is fine; while a call goes
        on it is refused. Returns within ``offload.store.CLOSE_S`` even where a disk hangs: then a
        ``RuntimeWarning`` names the read, whose buffers are freed when it comes back."""
        if self.turns.is_taken():
            raise SpecMoEError(
                "the engine is in use: end the call that goes on before you close it"
            )
        if self.store is not None:
            self.experts.uninstall()
            # First let go, so that nothing is held where closing is cut short.
            store, self.store, self._slots = self.store, None, None
            store.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def _copies(rows: list[Sequence], options: GenerateOptions) -> list[Sequence]:
    """``num_return_sequences`` rows for each, side by side, with noise of their own and one
    prefill."""
    number = options.num_return_sequences
    if number == 1:
        return rows
    if not options.do_sample:
        raise OptionError(
            f"num_return_sequences={number} without do_sample=True would give the "
            f"same text {number} times"
        )
    numbers = itertools.count(options.first_prompt)
    return [
        dataclasses.replace(row, prompt=next(numbers), tokens=list(row.tokens), twin=index)
        for index, row in enumerate(rows)
        for _ in range(number)
    ]


class _PackingBar:
    """A progress bar for packing, but only where it takes long enough to wonder."""

    def __init__(self):
        self._bar = None

    def __call__(self, bytes_done: int, bytes_total: int) -> None:
        if bytes_total < LONG_PACK_BYTES:
            return
        if self._bar is None:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=bytes_total, desc="packing experts", unit="B", unit_scale=True)
        self._bar.update(bytes_done - self._bar.n)
        if bytes_done >= bytes_total:
            self._bar.close()
