"""Machines that pull: the configuration of their container clients, and checks that it works.

Each client has a module of pure functions from the present text of its files to the new one. `disk` and `journal` read
and write files; `probe` examines a mirror over the network, `machine` the mirror's own machine.
"""
