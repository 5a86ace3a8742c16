# %% [markdown]
# # Exercise 14: an engine with four bugs
#
# **Goal.** Find four bugs in a working loop of draft, verify, accept and roll back. Two of them change the text, one its length, and one
# only what it costs.
#
# **Difficulty** medium · **Time** 20 minutes · **Before it** [06_batched_verification](../../notebooks/06_batched_verification.ipynb)

# %%
from specmoe.lab.exercises import check_repair

hint = check_repair.hint

# %% [markdown]
# The engine has one row and decodes greedily. `model` is a toy whose every token depends on all keys in its cache:
#
# | call | what it does |
# |---|---|
# | `model.draft(text)` | the draft's token after a list of tokens; it keeps no cache |
# | `model.forward(tokens)` | writes the tokens' keys behind those in the cache; the full model's token after each of them |
# | `model.forget(n)` | takes the last n keys out of the cache |
#
# Between rounds the cache holds the text without its last token, which opens the next block. Read the loop before you run the check, and
# write down what you suspect. The check names the first round that goes wrong and what it sees there, not the line.

# %%


def broken(model, prompt, num_new, gamma):
    text = list(prompt)
    model.forward(text[:-1])
    while len(text) < len(prompt) + num_new:
        drafted = []
        for _ in range(gamma):
            drafted.append(model.draft(text))
        target = model.forward([text[-1], *drafted])
        accepted = sum(mine == own for mine, own in zip(drafted, target))
        text += [*drafted[:accepted], target[accepted]]
        model.forget(accepted)
    return text[len(prompt) :]


# %% stub


def decode(model, prompt, num_new, gamma):
    # your code: the loop above without its bugs
    return None


# %% solution


def decode(model, prompt, num_new, gamma):
    text, end = list(prompt), len(prompt) + num_new
    model.forward(text[:-1])
    while len(text) < end:
        drafted = []
        for _ in range(min(gamma, end - len(text) - 1)):
            drafted.append(model.draft(text + drafted))
        target = model.forward([text[-1], *drafted])
        accepted = 0
        while accepted < len(drafted) and drafted[accepted] == target[accepted]:
            accepted += 1
        text += [*drafted[:accepted], target[accepted]]
        model.forget(len(drafted) - accepted)
    return text[len(prompt) :]


# %%
check_repair(decode)

# %% stub
# Stuck? Take a # away. Hints cost tiers: excellent without one, good after 1 and 2, pass after 3.
# hint(1)  # a nudge
# hint(2)  # the idea
# hint(3)  # almost the code

# %% [markdown] solution
# **Changes the text.** Agreement behind a rejection was counted: what stands is a prefix. And as many keys were forgotten as tokens stood; it
# has to be as many as fell.
#
# **Changes its length.** A round near the end drafted more than there was room for. The target gives one token itself, so one less is drafted.
#
# **Changes only the price.** Every drafted token continued the same text, so all but the first were guesses at the wrong place. The target
# corrects it all, and the text is right. No test of the text can find such a bug: count passes, acceptance and bytes as well. It is
# why the package's tests compare traces, and why the reports show the tokens of a round.
