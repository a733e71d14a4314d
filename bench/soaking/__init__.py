"""Load and faults for a long time, drawn from a seed. `python bench/soak.py` begins here.

library     what is pulled, and its bytes to compare with
schedule    which fault when: a pure function of the seed
faulty      the proxy before the registry that cuts, stalls, lies
cluster     the programs: registry, Redis, mirror
harm        carries the schedule out
exchange    one request to the mirror, each byte compared
clients     what clients do, and how often they try again
history     every answer, in a file, checked at the end
watch       disk, memory, descriptors over time
livez       a process that asks /livez every 50 ms
report      figures and verdict
"""
