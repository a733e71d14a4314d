"""The fast path: requests whose exact bytes were answered a moment ago are answered again without being parsed.

ready_answers.py     the table of ready answers, and when an entry ends
exact_requests.py    which bytes are one whole request, and which headers it may have
written_answer.py    the bytes of an answer, as they were written to the client
given_answers.py     metrics, log and notes of the answers that were given, as exact as those of all others
"""
