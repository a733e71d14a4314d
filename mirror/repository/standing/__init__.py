"""Whether an answer that was given a moment ago still stands: the same question, asked now, would get it again.

    answered ──> facts in memory are those of the answer? ── no ──> None: asked again the next time
                   └── yes ──> a `Standing` ── stands() ──> True: nothing that the answer was made of has changed
                                                 └────────> False, and from then on: the question must be asked again

A `Standing` remembers no right and no content of its own. It has the very objects that the repository would answer
from, and `stands` compares them with those that the repository would use now; what can change behind the back of this
process (files, counts of changes) is looked at each time. It never waits, and it stands for two seconds at most,
whatever it rests on.

lasting.py     `Standing`, and which repositories give one
in_memory.py   answers from what this process remembers
on_disk.py     answers that rest on a file
recorded.py    answers that rest on records of a hosted repository
"""
