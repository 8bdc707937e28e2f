"""Preflight of this machine, or of every host of a hostfile: `launcher/doctor.py`.

`probe` and `allreduce` run on each host, reached as training will reach it (`reach`); `judge`
says what of their findings is well, and `command` joins the parts.
"""
