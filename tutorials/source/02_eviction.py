# %% [markdown]
# # Exercise 2: an eviction policy
#
# **Goal.** Decide after every step which experts of a layer stay resident, and fetch fewer bytes than LRU.
#
# **Difficulty** medium · **Time** 20 minutes · **Before it** [03_experts_in_slow_memory](../../notebooks/03_experts_in_slow_memory.ipynb)

# %%
from specmoe.lab.exercises import check_eviction

hint = check_eviction.hint

# %% [markdown]
# After each step you are given `counts` (tokens per expert in this step, a list with E entries), `resident` (a set), `memory` (a
# dictionary, empty at first, yours to write in) and `num_kept`. Return the set of at most `num_kept` experts to keep.
# Only an expert that is resident or was asked for in this step can be kept. The score is bytes fetched on recorded
# requests of `tiny-skewed`, prefills among them. Belady's policy sees the future, so nobody can fetch less. You pass a tenth of the
# way from LRU to Belady; four tenths is good, half is excellent.

# %% stub


def keep(counts, resident, memory, num_kept):
    # your code: which experts stay?
    return None


# %% solution


def keep(counts, resident, memory, num_kept):
    heat = memory.setdefault("heat", [0.0] * len(counts))
    for expert, count in enumerate(counts):
        heat[expert] = 0.9 * heat[expert] + count
    here = {e for e, count in enumerate(counts) if count} | resident
    return set(sorted(here, key=lambda e: -heat[e])[:num_kept])


# %%
check_eviction(keep)

# %% stub
# Stuck? Take a # away. The tier is given by bytes, so hints cost nothing.
# hint(1)  # a nudge
# hint(2)  # the idea
# hint(3)  # almost the code

# %% [markdown] solution
# `heat` is a count that forgets: after n steps a use still weighs 0.9^n. At 0 this would be "used in this step", near 1 it is LFU. A rule
# without memory cannot rank the residents that this step did not use, and those are most of what it could keep.
#
# How much the past should weigh depends on the text. Try 0.5 and 0.99, then look how far all of them are from Belady.
