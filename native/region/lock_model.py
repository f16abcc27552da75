"""The writers' lock as an exhaustive model: taking, giving back, deaths, and a word that is damaged.

Every interleaving of the steps of lock.c by some writers is visited, with a kill anywhere and one
damage of the word at any time: to nonsense, or to the name of a living member. (A word that is damaged
to a sound one that says "free", or names a dead member, is not told from a true one; the check bits
make it one chance in 65,536.)

Invariant: never are two living writers inside. Progress: from every state there is a way to one in
which every living writer is through.

Run it: it prints the number of states, and for each mutation (a step left out or two exchanged) what
goes wrong. It fails if the protocol breaks or a mutation does not.
"""

from collections.abc import Iterator
from typing import NamedTuple

OUT, TRYING, WAITING = "out", "trying", "waiting"
FREE, JUNK = -1, -2


class Word(NamedTuple):
    """Whose, and how often the lock was taken."""

    owner: int
    count: int


class Writer(NamedTuple):
    """What the row says, where in lock.c it is, what it has seen, whom it asks next, how often it goes in."""

    said: str = OUT
    at: str = "begin"
    seen: Word = Word(FREE, 0)
    ask: int = 0
    left: int = 1
    alive: bool = True


class State(NamedTuple):
    lock: Word
    writers: tuple[Writer, ...]
    damage: int = 1
    kills: int = 1


#: What is left out or exchanged -> what that breaks, and the smallest number of writers who show it.
MUTATIONS = {
    "the row says so after the lock was taken": ("two inside", 2),
    "the row says out before the lock is given back": ("two inside", 2),
    "nobody else is asked": ("two inside", 2),
    "of a dead holder nobody else is asked": ("two inside", 3),
    "taking it is not counted": ("two inside", 2),
    "who waits does not say so": ("no way on", 3),
    "a word that is not sound is waited for": ("no way on", 2),
    "a living member is always believed to have it": ("no way on", 3),
}


def _step(s: State, i: int, mutation: str) -> Iterator[State]:
    me = s.writers[i]
    counted = 0 if mutation == "taking it is not counted" else 1
    late = mutation == "the row says so after the lock was taken"

    def to(at: str, *, lock: Word | None = None, **what: object) -> State:
        mine = me._replace(at=at, **what)  # type: ignore[arg-type]
        return s._replace(
            lock=s.lock if lock is None else lock, writers=(*s.writers[:i], mine, *s.writers[i + 1 :])
        )

    if me.at == "begin" and me.left:
        yield to("try", said=me.said if late else TRYING)
    elif me.at == "try":
        if s.lock.owner == FREE:
            yield to("tell" if late else "inside", lock=Word(i, s.lock.count + counted))
        else:
            yield to("look", said=me.said if mutation == "who waits does not say so" else WAITING)
    elif me.at == "tell":
        yield to("inside", said=TRYING)
    elif me.at == "look":
        yield to("begin") if s.lock.owner == FREE else to("asleep", seen=s.lock)
    elif me.at == "asleep":
        # Woken, or the slice is over: both come to a look at the word.
        yield to("begin") if s.lock != me.seen else to("ask")
    elif me.at == "ask":
        owner = me.seen.owner
        if owner == JUNK:
            yield to("begin" if mutation == "a word that is not sound is waited for" else "scan", ask=0)
        elif owner == i:
            yield to("scan", ask=0)
        elif not s.writers[owner].alive:
            yield to("take" if mutation == "of a dead holder nobody else is asked" else "scan", ask=0)
        elif s.writers[owner].said == TRYING or mutation == "a living member is always believed to have it":
            yield to("begin")
        else:
            yield to("scan", ask=0)
    elif me.at == "scan":
        if me.ask == len(s.writers) or mutation == "nobody else is asked":
            yield to("take", ask=0)
        else:
            other = s.writers[me.ask]
            has = me.ask != i and other.alive and other.said == TRYING
            yield to("begin", ask=0) if has else to("scan", ask=me.ask + 1)
    elif me.at == "take":
        # Says that it tries, then exchanges the word if it is still the one that was seen.
        if me.said != TRYING and not late:
            yield to("take", said=TRYING)
        elif s.lock == me.seen:
            yield to("tell" if late else "inside", lock=Word(i, s.lock.count + counted))
        else:
            yield to("begin")
    elif me.at == "inside":
        early = mutation == "the row says out before the lock is given back"
        yield to("giving", said=OUT if early else me.said)
    elif me.at == "giving":
        yield to("given", lock=Word(FREE, s.lock.count))
    elif me.at == "given":
        yield to("begin", said=OUT, left=me.left - 1, seen=Word(FREE, 0), ask=0)


def _around(s: State, mutation: str) -> Iterator[State]:
    for i, writer in enumerate(s.writers):
        if not writer.alive:
            continue
        yield from _step(s, i, mutation)
        if s.kills and writer.at != "begin":
            dead = writer._replace(alive=False)
            yield s._replace(kills=s.kills - 1, writers=(*s.writers[:i], dead, *s.writers[i + 1 :]))
    if s.damage:
        count = s.lock.count
        for word in (Word(JUNK, count), *(Word(i, c) for i in range(len(s.writers)) for c in (count, count + 1))):
            if word != s.lock and (word.owner == JUNK or s.writers[word.owner].alive):
                yield s._replace(lock=word, damage=0)


def _wrong(s: State) -> bool:
    return sum(w.alive and w.at in ("tell", "inside", "giving") for w in s.writers) > 1


def explore(mutation: str = "", rounds: tuple[int, ...] = (1, 1, 1)) -> tuple[int, str]:
    """All states that can be reached; what is wrong with the first wrong one, or nothing.

    `rounds`: how often each writer goes in.
    """
    start = State(Word(FREE, 0), tuple(Writer(left=left) for left in rounds))
    before: dict[State, list[State]] = {start: []}
    todo = [start]
    ends = []
    while todo:
        s = todo.pop()
        if _wrong(s):
            return len(before), f"two inside: {s}"
        if all(not w.alive or (w.at == "begin" and not w.left) for w in s.writers):
            ends.append(s)
        for then in _around(s, mutation):
            if then in before:
                before[then].append(s)
            else:
                before[then] = [s]
                todo.append(then)
    good = set(ends)
    todo = ends
    while todo:
        for s in before[todo.pop()]:
            if s not in good:
                good.add(s)
                todo.append(s)
    stuck = next((s for s in before if s not in good), None)
    return len(before), "" if stuck is None else f"no way on: {stuck}"


def main() -> int:
    """Print what was found; 1 if it is not what it should be."""
    states, why = explore(rounds=(2, 1, 1))
    print(f"{states} states: {why or 'never two inside, always a way on'}")
    failed = bool(why)
    for mutation, (wanted, writers) in MUTATIONS.items():
        states, why = explore(mutation, (1,) * writers)
        print(f"{mutation}: {why or f'{states} states, nothing wrong'}")
        failed |= not why.startswith(wanted)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
