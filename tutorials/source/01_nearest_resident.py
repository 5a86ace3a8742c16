# %% [markdown]
# # Exercise 1: the nearest resident expert
#
# **Goal.** While drafting, nothing is fetched: an expert that is not resident is replaced by the resident expert with the
# nearest weights. Write the table that says who stands in for whom.
#
# **Difficulty** easy · **Time** 10 minutes · **Before it** [05_self_draft](../../notebooks/05_self_draft.ipynb)

# %%
from specmoe.lab.exercises import check_nearest

hint = check_nearest.hint

# %% [markdown]
# `distances` is a list of E lists of E numbers: `distances[a][b]` is the L2 distance between the weights of the experts
# `a` and `b`. `residents` lists the resident experts, in any order. Return a list with E entries: entry `e` is the expert that
# computes in place of `e`. A resident stands for itself; of two residents equally near either may stand in. With no resident at
# all, every entry is E ("no expert").

# %% stub


def table(distances, residents):
    # your code: for every expert, the nearest of the residents
    return None


# %% solution


def table(distances, residents):
    num_experts = len(distances)
    if not residents:
        return [num_experts] * num_experts
    nearest = [min(residents, key=lambda r: distances[e][r]) for e in range(num_experts)]
    return [e if e in residents else nearest[e] for e in range(num_experts)]


# %%
check_nearest(table)

# %% stub
# Stuck? Take a # away. Hints cost tiers: excellent without one, good after 1 and 2, pass after 3.
# hint(1)  # a nudge
# hint(2)  # the idea
# hint(3)  # almost the code

# %% [markdown] solution
# Every expert looks only at the residents' columns of its own row. Three traps: a position among the residents is not an expert's
# number; experts with equal weights are at distance zero, so a resident is put back in its own place; and `min` of nothing raises.
# Where two residents are equally near, either may stand in.
#
# The engine makes this table when a layer's draft set changes: `specmoe.offload.affinity.nearest_resident`. Does the nearest resident
# draft better than a random one? That is a question for a measurement: `substitute="random"` in `engine.generate`.
