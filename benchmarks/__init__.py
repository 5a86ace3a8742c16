"""How fast the methods are on this machine, beside what its hardware allows: scripts, their results, the page made of them.

``python -m benchmarks.run`` measures, ``python -m benchmarks.page`` writes ``docs/performance.md`` from the results.
"""
