"""Preflight of this machine, or of every host of a hostfile: `launcher/doctor.py`.

`probe` and `allreduce` run on each host, reached as training will reach it (`reach`); `checks`
judges what they found, and `command` joins the two.
"""
