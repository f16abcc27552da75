"""Publish, pin, recover and fork hand-over as an exhaustive model.

Every interleaving of the steps below, with a kill between any two, is visited; the steps are those of
the code, named after it:

    writer   replaces object X: takes the lock and a free block, fills it, publishes (store.c publish),
             withdraws the old publication (ent_seq), looks for pins (free_if_unheld), frees its block
             or leaves it in limbo, unlocks. Twice, so that blocks are used again.
    reader   finds X (index.c look_once): slot, entry, pin, fence, is it still that publication? Then
             looks at the bytes, forks (member.c before_fork ...), lets go.
    child    of the reader: holds what the reader held, looks, lets go.
    mender   takes the lock of a dead writer over and recovers (recover.c).

Invariants, in every state: what a living process has accepted as held keeps its bytes; the name leads
to a whole, committed object, never older than what was last published. At every end: no block is
lost: each is free, or the object's, or held.

Run it: it prints the number of states of the right protocol, and for each mutation (a step left out
or two exchanged) the first state that is wrong. It fails if the protocol breaks or a mutation does not.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

FREE, USED, LIMBO = "free", "used", "limbo"
BLOCKS = 3
ROUNDS = 2


@dataclass(frozen=True)
class State:
    """Shared memory first, then what each process knows."""

    lock: str = ""  # whose
    slot: int = 0  # block of the entry that the index names; one entry a block
    seq: tuple[int, ...] = (1, 0, 0)  # publication of each block's entry; 0: none
    place: tuple[str, ...] = (USED, FREE, FREE)  # what the allocator says
    content: tuple[int, ...] = (1, 0, 0)  # the bytes
    pins: tuple[tuple[str, int], ...] = ()  # (process, block)
    last: int = 1  # newest publication
    dead: frozenset[str] = frozenset()

    w_at: str = "idle"
    w_round: int = 0
    w_new: int = -1
    w_old: int = -1

    r_at: str = "idle"
    r_block: int = -1
    r_seq: int = 0
    c_at: str = "none"
    m_at: str = "idle"
    mended: int = 0


def put(row: tuple, at: int, value: object) -> tuple:
    return (*row[:at], value, *row[at + 1 :])


def pinned(s: State, block: int) -> bool:
    return any(b == block and who not in s.dead for who, b in s.pins)


def with_pin(s: State, who: str, block: int) -> State:
    return replace(s, pins=tuple(sorted({*s.pins, (who, block)})))


def without_pin(s: State, who: str) -> State:
    return replace(s, pins=tuple(p for p in s.pins if p[0] != who))


def writer(s: State, broken: str) -> Iterator[State]:
    if "writer" in s.dead:
        return
    at = s.w_at
    if at == "idle" and s.w_round < ROUNDS and not s.lock:
        yield replace(s, lock="writer", w_at="take")
    elif at == "take":
        # Before it says that the region is full it looks through limbo.
        for b in range(BLOCKS):
            if s.place[b] == LIMBO and (broken == "limbo not asked" or not pinned(s, b)):
                s = replace(s, place=put(s.place, b, FREE))
        free = [b for b in range(BLOCKS) if s.place[b] == FREE]
        if not free:
            yield replace(s, lock="", w_at="idle", w_round=s.w_round + 1)  # RegionFull
            return
        yield replace(s, place=put(s.place, free[0], USED), w_new=free[0], w_old=s.slot, w_at="fill")
    elif at == "fill":
        if broken == "publish before fill":
            yield replace(s, seq=put(s.seq, s.w_new, s.last + 1), last=s.last + 1, w_at="late fill")
            return
        yield replace(s, content=put(s.content, s.w_new, s.last + 1), w_at="publish")
    elif at == "late fill":
        yield replace(s, content=put(s.content, s.w_new, s.last), w_at="slot")
    elif at == "publish":
        # ent_seq: from here the object exists, also after a kill.
        nxt = "withdraw" if broken == "withdraw before slot" else "slot"
        yield replace(s, seq=put(s.seq, s.w_new, s.last + 1), last=s.last + 1, w_at=nxt)
    elif at == "slot":
        yield replace(s, slot=s.w_new, w_at="unlock" if broken == "withdraw before slot" else "withdraw")
    elif at == "withdraw":
        if broken == "look before withdraw":
            held = pinned(s, s.w_old)
            yield replace(s, w_at="keep" if held else "clear and free")
            return
        yield replace(s, seq=put(s.seq, s.w_old, 0), w_at="look")
    elif at == "clear and free":
        yield replace(s, seq=put(s.seq, s.w_old, 0), place=put(s.place, s.w_old, FREE), w_at="unlock")
    elif at == "keep":
        yield replace(s, seq=put(s.seq, s.w_old, 0), place=put(s.place, s.w_old, LIMBO), w_at="unlock")
    elif at == "look":
        held = pinned(s, s.w_old) and broken != "pins not asked"
        after = "slot" if broken == "withdraw before slot" else "unlock"
        yield replace(s, place=put(s.place, s.w_old, LIMBO if held else FREE), w_at=after)
    elif at == "unlock":
        yield replace(s, lock="", w_at="idle", w_round=s.w_round + 1, w_new=-1, w_old=-1)


def reader(s: State, broken: str) -> Iterator[State]:
    if "reader" in s.dead:
        return
    at = s.r_at
    if at == "idle":
        yield replace(s, r_at="entry", r_block=s.slot)
    elif at == "entry":
        seq = s.seq[s.r_block]
        # 0: replaced meanwhile, the slot has another; begin again.
        yield replace(s, r_at="pin" if seq else "idle", r_seq=seq)
    elif at == "pin":
        if broken == "pin not announced":
            yield replace(s, r_at="again")
        elif broken == "check before pin":
            yield replace(s, r_at="late pin" if s.seq[s.r_block] == s.r_seq else "idle")
        else:
            yield replace(with_pin(s, "reader", s.r_block), r_at="again")
    elif at == "late pin":
        yield replace(with_pin(s, "reader", s.r_block), r_at="held")
    elif at == "again":
        if s.seq[s.r_block] == s.r_seq or broken == "not checked again":
            yield replace(s, r_at="held")
        else:
            yield replace(without_pin(s, "reader"), r_at="idle")
    elif at == "held":
        yield replace(without_pin(s, "reader"), r_at="done")
        if s.c_at == "none":
            if broken == "child pins after fork":
                yield replace(s, c_at="unpinned", r_at="forked")
            else:
                # before_fork: row and pins of the child are there before it is.
                yield replace(with_pin(s, "child", s.r_block), r_at="forking")
    elif at == "forking":
        yield replace(s, c_at="held", r_at="forked")
    elif at == "forked":
        yield replace(without_pin(s, "reader"), r_at="done")


def child(s: State, broken: str) -> Iterator[State]:
    if "child" in s.dead:
        return
    if s.c_at == "unpinned":
        yield replace(with_pin(s, "child", s.r_block), c_at="held")
    elif s.c_at == "held":
        yield replace(without_pin(s, "child"), c_at="done")


def mender(s: State, broken: str) -> Iterator[State]:
    """Whoever comes next; made of single steps too, and killed by nobody: a second one begins anew."""
    if s.m_at == "idle" and s.lock and s.lock in s.dead:
        yield replace(s, lock="mender", m_at="classify")
    elif s.m_at == "classify":
        live = [b for b in range(BLOCKS) if s.seq[b]]
        newest = max(live, key=lambda b: s.seq[b])
        if broken == "recovery takes the index for the truth":
            newest = s.slot
        yield replace(s, slot=newest, m_at="withdraw")
    elif s.m_at == "withdraw":
        seq = tuple(q if b == s.slot else 0 for b, q in enumerate(s.seq))
        yield replace(s, seq=seq, m_at="rebuild")
    elif s.m_at == "rebuild":
        place = list(s.place)
        for b in range(BLOCKS):
            if b == s.slot:
                place[b] = USED
            elif s.place[b] != FREE and broken == "recovery leaks":
                continue
            else:
                # What was withdrawn or half made: free, unless somebody living holds it.
                held = pinned(s, b) and broken != "recovery asks no pins"
                place[b] = LIMBO if held else FREE
        yield replace(s, place=tuple(place), m_at="unlock")
    elif s.m_at == "unlock":
        # And goes on to write: the one writer stands for whoever does.
        again = {"w_at": "idle", "w_round": ROUNDS - 1, "w_new": -1, "w_old": -1, "dead": s.dead - {"writer"}}
        yield replace(s, lock="", m_at="idle", mended=s.mended + 1, **again)


def kills(s: State) -> Iterator[State]:
    """At any point; the kernel frees the row, and with it the pins count no more."""
    started = {
        "writer": s.w_at != "idle",
        "reader": s.r_at not in ("idle", "done"),
        "child": s.c_at in ("held", "unpinned"),
    }
    for who, can in started.items():
        if can and who not in s.dead and (who != "writer" or s.mended < 2):
            yield replace(s, dead=s.dead | {who})


def wrong(s: State) -> str:
    """Why the state must not be; empty if it may."""
    for who, at, holding in (
        ("reader", s.r_at, {"held", "forking", "forked"}),
        ("child", s.c_at, {"held", "unpinned"}),
    ):
        if who in s.dead or at not in holding:
            continue
        if s.content[s.r_block] != s.r_seq:
            return f"the {who} looks at bytes of another publication"
    if s.content[s.slot] == 0 or s.place[s.slot] == FREE:
        return "the name leads to a block that is free"
    if not s.lock:
        if s.seq[s.slot] != s.last:
            return "the newest committed object is lost"
        for b in range(BLOCKS):
            if b != s.slot and s.place[b] == USED:
                return "a block is leaked"
    elif not any(s.seq) and s.lock not in s.dead:
        return "the object is gone"
    # A reader that comes now and waits for nobody: it must find the name in a few tries.
    if s.seq[s.slot] == 0:
        return "a reader finds nothing under the name"
    return ""


def explore(broken: str = "") -> tuple[int, str]:
    """The number of states, and what is wrong with the first bad one."""
    start = State()
    seen, queue = {start}, [start]
    while queue:
        s = queue.pop()
        why = wrong(s)
        if why:
            return len(seen), why
        for steps in (writer(s, broken), reader(s, broken), child(s, broken), mender(s, broken), kills(s)):
            for following in steps:
                if following not in seen:
                    seen.add(following)
                    queue.append(following)
    return len(seen), ""


MUTATIONS = (
    "publish before fill",
    "withdraw before slot",
    "look before withdraw",
    "pins not asked",
    "limbo not asked",
    "pin not announced",
    "check before pin",
    "not checked again",
    "child pins after fork",
    "recovery takes the index for the truth",
    "recovery leaks",
    "recovery asks no pins",
)


def main() -> int:
    states, why = explore()
    print(f"the protocol: {states} states, {why or 'all right'}")
    failed = bool(why)
    for broken in MUTATIONS:
        states, why = explore(broken)
        print(f"{broken}: {why or 'NOT FOUND'} (after {states} states)")
        failed |= not why
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
