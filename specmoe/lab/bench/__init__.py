"""How fast the methods are on this machine, beside what its hardware allows: scripts, their
results, the page made of them.

``python -m specmoe.lab.bench.run`` measures, ``python -m specmoe.lab.bench.page`` writes
``docs/performance.md`` from the results.
"""
