"""Servers on the nodes of a Ray cluster.

`driver` alone connects to the cluster, in a process of its own; `node` and `guardian` run on the nodes, which have Themis too.
"""
