"""The other replicas of a cluster, as this one reaches them.

members.py       who they are
member_lookup.py by a DNS name
peer_health.py   which of them answer
secret_file.py   the secret that all share

What they ask of this replica is answered in `mirror/server/peers`; how requests are signed is in
`mirror/policy/cluster/peer_signatures.py`.
"""
