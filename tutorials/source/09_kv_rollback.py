# %% [markdown]
# # Exercise 9: rolling back the KV cache
#
# **Goal.** After a verification, say where the next block begins in every row and which keys its tokens may see, so that rejected
# tokens are forgotten without a copy.
#
# **Difficulty** medium · **Time** 20 minutes · **Before it** [06_batched_verification](../../notebooks/06_batched_verification.ipynb)

# %%
from specmoe.lab.exercises import check_rollback

hint = check_rollback.hint

# %% [markdown]
# Row b's last block began at position `starts[b]` with the row's last token; drafted tokens followed, and `accepted[b]` of them stand. The
# target's own token behind them is chosen, but its keys are not in the cache yet: the next block begins with it. The block has `num_tokens`
# tokens per row, the cache `length` positions; the keys of the block are written before anybody looks.
# Return a pair: the list of B positions where the blocks begin, and a mask `[b][t][k]`, True where token t of row b's block may see the
# key at position k. Keys of rejected tokens are still in the cache.

# %% stub


def next_block(starts, accepted, num_tokens, length):
    # your code: where the blocks begin, and what their tokens see
    return None


# %% solution


def next_block(starts, accepted, num_tokens, length):
    begins = [start + 1 + number for start, number in zip(starts, accepted)]
    mask = [
        [[key <= begin + t for key in range(length)] for t in range(num_tokens)]
        for begin in begins
    ]
    return begins, mask


# %%
check_rollback(next_block)

# %% stub
# Stuck? Take a # away. Hints cost tiers: excellent without one, good after 1 and 2, pass after 3.
# hint(1)  # a nudge
# hint(2)  # the idea
# hint(3)  # almost the code

# %% [markdown] solution
# The last token stands at `start`, `accepted` drafted tokens behind it, so the target's own comes at `start + 1 + accepted`. A token sees its own
# position and all before it. Stale keys lie behind the accepted ones: the block overwrites those that its tokens could see, and the mask
# hides the rest. That is the whole rollback: nothing is copied or cleared.
#
# Every row goes back by its own number. The engine's cache does the same with tensors: `specmoe.model.kv_cache.RaggedKVCache`.
