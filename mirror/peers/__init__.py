"""The other replicas of a cluster, as this one reaches them.

members.py       who they are
member_lookup.py by a DNS name
peer_health.py   which of them answer; member_looks.py asks them regularly
secret_file.py   the secret that all share
peer_signer.py   signs requests to them, and judges their answers
peer_client.py   small requests to them
peer_notices.py  informs them of what has changed here; notice_text.py is how that is written
upload_exchange.py  passes an upload request on to one of them; session_owners.py says to which
used_nonces.py   the requests of theirs that were taken

What they ask of this replica is answered in `mirror/server/peers`; how requests are signed is in
`mirror/policy/cluster/peer_signatures.py`.
"""
