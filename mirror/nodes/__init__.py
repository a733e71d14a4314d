"""Machines that pull: the configuration of their container clients, and whether it works.

Pure functions from the text of files to the text of files, one module per client; `disk` and `journal` touch files,
`visit` and `machine` look at what is there.
"""
