# %% [markdown]
# # Exercise 2: an eviction policy
#
# **Goal.** Decide after every step which experts of a layer stay resident, and fetch fewer bytes than LRU.
#
# **Difficulty** medium · **Time** 20 minutes · **Before it** `notebooks/03_experts_in_slow_memory.ipynb`

# %%
from specmoe.lab.exercises import check_eviction

# %% [markdown]
# After each step you are given `counts` (tokens per expert in this step, a list with E entries), `resident` (a set), `memory` (a
# dictionary, empty at first, yours to write in) and `num_kept`. Return the set of at most `num_kept` experts to keep.
# Only an expert that is resident or was asked for in this step can be kept. The score is bytes fetched on recorded
# requests of `tiny-skewed`; Belady's policy sees the future, so nobody can fetch less.

# %% stub


def keep(counts, resident, memory, num_kept):
    # your code: which experts stay?
    return None


# %% solution


def keep(counts, resident, memory, num_kept):
    heat = memory.setdefault("heat", [0.0] * len(counts))
    for expert, count in enumerate(counts):
        heat[expert] = 0.8 * heat[expert] + (count > 0)
    here = {e for e, count in enumerate(counts) if count} | resident
    return set(sorted(here, key=lambda e: -heat[e])[:num_kept])


# %%
check_eviction(keep)

# %% [markdown]
# <details><summary>Hint</summary>
#
# LRU looks only at the last use, LFU only at the number of uses. A number per expert that shrinks a little in each step and
# grows with each use holds both. Candidates are the experts of this step *and* the residents.
#
# </details>

# %% [markdown] solution
# How much the past should weigh depends on the text. Try 0.5 and 0.95, then look how far all of them are from Belady.
