"""How fast the methods are on this machine, beside what its hardware allows: scripts, their
results, the tables made of them.

``python -m specmoe.lab.bench.run`` measures; the notebook ``performance`` shows the results, and
``python -m specmoe.lab.bench.page`` exports it to ``docs/performance.md``.
"""
