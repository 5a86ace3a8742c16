"""What an instructor needs beside the notebooks: slides, a kit for rooms without a network, times.

Comes in: ``notebooks/`` and ``tutorials/`` of a checkout. Goes out: files in a folder of yours, by
``python -m specmoe.lab.workshop slides`` (or ``usb``, ``times``).
"""
