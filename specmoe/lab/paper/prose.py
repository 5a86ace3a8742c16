"""Titles of the tables, and what one must know to compare them with the paper's.

Goes out: ``TITLES``, ``WHY`` by table, ``WHY_MAP``. ``document`` and the notebook print them;
numbers in them are of set-ups, not results.
"""

from __future__ import annotations

TITLES = {
    "throughput": "Throughput and latency against batch",
    "bytes": "Slow-to-fast bytes against batch",
    "growth": "Growth of the bytes from batch 1 to 256",
    "substitution": "Substitutes for experts that are not resident",
    "draft_set": "Choice of the draft set",
    "draft_experts": "Number of draft experts",
    "low_skew": "Models with less skew, temperature 1, gamma 5",
    "ssd": "Experts on an SSD",
    "migration": "Share of time in expert migration",
    "implied": "Throughput on the machine that the paper's numbers imply",
}
WHY = {
    "throughput": (
        "**Measured**: experts widened to 256 KiB on a disk throttled to 0.25 GB/s, two cores, prefetching on; speed "
        "over the rounds in which the batch is full. Every method has the bytes that N = 4 needs, but `cached` (13 of "
        "128 experts, as in the paper: **unequal memory**) and `specmoe, bytes of cached`. `overlapped` guesses the "
        "next layer's experts; the paper's Overlap is an oracle: `overlapped (oracle)`. **Simulated**: our recordings "
        "at the size of NLLB-MoE on an H100 behind PCIe 5.0; `specmoe` does not prefetch there, as the paper's. Why "
        "ours differ: computing is slow here compared with reading (the map below says how many FLOP per byte), so "
        "drafting costs more of what it saves, and at the largest batches the arithmetic of two cores limits every "
        "method: the speed-up peaks earlier than the paper's. At batches of 128 and more a run of `specmoe` is a few "
        "long rounds. Simulated tokens per second are far above the paper's because its link is used at a small part "
        "of its rate (last table); compare ratios."
    ),
    "bytes": (
        "Bytes carry over between machines. Prefetching is off, as in the paper. In the paper, and in the lines "
        "marked so, caching keeps 13 of 128 experts and specmoe 4: that is **unequal memory**. The same at equal "
        "bytes stands beside it."
    ),
    "growth": (
        "Bytes per token times batch, decoding only, rounds with the batch kept full; ranges over sets of held-out "
        "sentences. For `on_demand` it is the distinct experts of a step at batch 256 over those at batch 1. Our "
        "model needs about 70 a layer at batch 256, as the paper's does (28 GB a step), and a top-2 router 2 at batch "
        "1: no more than 35 times. The paper's 45 times are 1.5 experts a layer at batch 1; a second expert that is "
        "dropped, or is still there from the step before, would give that. `cached` with 13 of 128 experts starts "
        "lower here, because 13 hold most of what one sentence of a narrow domain needs, and so it grows more than "
        "the paper's."
    ),
    "substitution": (
        "Ranges are the smallest and largest of several sets of held-out prompts; changes are taken set by set. "
        "`no_experts` is the control: a draft with no expert output at all; the paper has none. Why `affinity` gains "
        "little over `random` here: our experts come from one dense layer (upcycling) and stay similar, and the "
        "expert closest to the mean of all is the nearest of most, so the choice of the substitute matters little. A "
        "model whose experts were trained apart would tell."
    ),
    "draft_set": (
        "Ranges are over sets of held-out prompts, and an order is judged set by set. `hot_global` stands on a "
        "calibration run over a few of the same prompts, which flatters it, and our text is one narrow domain: its "
        "average is a better guess of what the next block needs than the counts of one block, so `hot_global` is "
        "level with `hot_temporal` or ahead. Where the text changes its subject the average is "
        "worse; the paper's own "
        "difference between the two is 0.6 %. A model and prompts of many domains, and a "
        "calibration on other "
        "prompts, would settle it."
    ),
    "draft_experts": (
        "N changes the memory too: each N has the bytes that it needs. More draft experts accept "
        "more; each draft "
        "step computes more of them, which costs time on a CPU and, at the paper's sizes, reading "
        "their weights from "
        "the GPU's memory."
    ),
    "low_skew": (
        "**Measured**: `tiny-balanced` (8 experts, even use) and `tiny-skewed` (32 experts), 0.25 "
        "GB/s, equal bytes. "
        "**Simulated**: their recorded routing at the sizes of Mixtral-8x7B and Llama-4-Scout on "
        "the paper's machine, "
        "as far as a model of other expert counts can stand for these. Compare the shape, not the "
        "numbers. N = 4 of 8 "
        "experts is half of them, and what is resident need not be fetched: that, and drafts that "
        "are nearly the "
        "model's own, is why `tiny-balanced`, simulated, gains far more than the paper's Mixtral. "
        "The paper does not "
        "say (in what we know) how many of Mixtral's experts it kept. On our clock `specmoe` gains "
        "less and can fall "
        "behind at large batches: there drafting takes most of its time, while the others hardly "
        "wait for the link "
        "any more. Llama-4-Scout, simulated, is above the paper's too; the overheads that the "
        "paper's numbers imply "
        "(last table) are not in it. One set of prompts, prefetching on."
    ),
    "ssd": (
        "**Measured**: the disk as it is, direct I/O, experts widened to 3 MiB, prefetching on. "
        "**Simulated**: an "
        "H100 that reads from one NVMe SSD of 7 GB/s. The paper's means are over its batches, ours "
        "over those in the "
        "table. Simulated speed-ups are above the paper's as they are behind PCIe: the overheads "
        "that its numbers "
        "imply (last table) are not in them. `cached` gains more than the paper's because 13 "
        "experts hold most of "
        "what a narrow domain needs."
    ),
    "migration": (
        "**Measured**: the share of decoding in which nothing was computed because a read had not "
        "arrived, 0.25 GB/s. "
        "**Simulated**: the same, replayed. Here computing takes a larger part of a step than on "
        "the paper's GPU, so "
        "less of it is waiting."
    ),
    "implied": (
        "The paper says that a step at batch 256 moves 28 GB, that on_demand makes 28.6 tokens per "
        "second, and that "
        "up to 90 % of the time is migration. So its link moved 3.5 GB/s, a twentieth of PCIe 5.0 "
        "(as copies from "
        "pageable memory, or many small ones, reach), and the rest of a step is 2.1 ms for each of "
        "about 420 experts "
        "computed. **Simulated** with these two and nothing else changed: on_demand is the paper's "
        "by construction, "
        "as our model needs as many distinct experts as the paper's (28 GB are 70 of 128 experts a "
        "layer); nothing of "
        "specmoe is fitted. Where ours rises with N up to 16 and the paper's does not: 12 more "
        "resident experts a "
        "layer save as many reads in each of our verifications. The paper's time per round grows "
        "from N = 4 to 16 by "
        "2 s (from its tokens per round and per second). It drafts 720 experts more in a round: "
        "were each to take the "
        "2.1 ms of a verified one, they would be 1.5 s of it, while our replay charges drafting "
        "its memory traffic "
        "only. The same would explain a part of why specmoe comes out faster than the paper's at N "
        "of 2 to 8. Its "
        "code, or its time per round taken apart, would settle it."
    ),
}
WHY_MAP = (
    "**Simulated** by `specmoe.lab.simulate` from recordings of real runs at the sizes of "
    "NLLB-MoE, Llama-4-Scout and "
    "Mixtral-8x7B, every method with the same fast memory (what N draft experts need). "
    "`overlapped` guesses, it is no "
    "oracle; `cached` is the eviction that read least; `specmoe` the better of gamma 4 and 10, "
    "with or without "
    "prefetching. The balance is the compute rate over the link rate; link, memory and overheads "
    "are the H100's, so "
    "that the map is exact at that line and a likeness at the others. Circles are **measured** "
    "here, with our small "
    "models and their overheads: where a circle has another colour than the map around it, the "
    "small model's "
    "overheads decided."
)
KINDS_MEAN = (
    "**paper**: reported in arXiv 2604.10152, as collected in reading notes. **measured**: ran "
    "here. **simulated**: "
    "computed from recordings of runs, on the hardware that is named. No column mixes them."
)
NOTE = (
    "'cached' keeps a tenth of the experts, the paper's unequal memory; all others but "
    "'resident': equal bytes"
)
