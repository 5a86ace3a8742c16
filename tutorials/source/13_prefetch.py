# %% [markdown]
# # Exercise 13: reading ahead
#
# **Goal.** While the draft runs, the link is free. Say which experts to read before the verification asks for them, and in which order.
#
# **Difficulty** medium · **Time** 15 minutes · **Before it** [08_overlap_and_prefetch](../../notebooks/08_overlap_and_prefetch.ipynb)

# %%
from specmoe.lab.exercises import check_read_ahead

hint = check_read_ahead.hint

# %% [markdown]
# The draft's routers choose experts as if all were there; stand-ins compute, but the choice says what the verification will want.
# `votes[layer][e]` is how many drafted tokens chose expert e of that layer. `held` is a set of (layer, expert): in fast memory already, or
# on its way. Return a list of (layer, expert), the one to read first in front:
#
# - at most `room` reads, for so many buffers are free;
# - only what has at least `quorum` votes, since one token alone is often wrong;
# - the verification begins with layer 0, and each layer waits for its own experts only;
# - within a layer the most votes first; of equal votes the lower number first.

# %% stub


def read_ahead(votes, held, quorum, room):
    # your code: which reads begin, and in which order?
    return None


# %% solution


def read_ahead(votes, held, quorum, room):
    reads = []
    for layer, row in enumerate(votes):
        named = [e for e in range(len(row)) if row[e] >= quorum and (layer, e) not in held]
        reads += [(layer, e) for e in sorted(named, key=lambda e: -row[e])]
    return reads[:room]


# %%
check_read_ahead(read_ahead)

# %% stub
# Stuck? Take a # away. Hints cost tiers: excellent without one, good after 1 and 2, pass after 3.
# hint(1)  # a nudge
# hint(2)  # the idea
# hint(3)  # almost the code

# %% [markdown] solution
# Layers come before votes: a read is worth what it spares, and layer 0 waits first. A read for the last layer has the whole verification to
# arrive. `sorted` keeps equal votes in the order of their numbers. Cut last: what is cut before `held` is out leaves buffers empty.
#
# The table is the bargain of every prefetcher. With little room nearly all reads are needed, and they serve few of the misses; with more
# room more misses are served, and more reads are for nothing. The link decides: where it would be idle, a useless read costs nothing. The
# engine orders its reads so in `specmoe.offload.votes.Votes.after`.
