"""Publish, pin, recover and fork hand-over as an exhaustive model.

Every interleaving of the steps below, with a kill between any two, is visited; the steps are those of
the code, named after it:

    writer   replaces object X: takes the lock and a free block, fills it, publishes (store.c publish),
             withdraws the old publication (ent_seq), says LEAVING, looks for pins (free_if_unheld), frees
             its block or leaves it in limbo, unlocks. Twice, so that blocks are used again; and before
             it takes a block it looks in the same way at what is in limbo.
    reader   finds X (index.c look_once): slot, entry, pin, fence, is it still that publication? Or has a
             reference to the first publication (sr_catalog_get_exact): is it in limbo, pin, fence, is it
             still? Then looks at the bytes, forks (member.c before_fork ...), lets go.
    sender   of the reference: holds the first publication from before, lets go at any time.
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

FREE, USED, LIMBO, LEAVING = "free", "used", "limbo", "leaving"
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
    was: tuple[int, ...] = (0, 0, 0)  # withdrawn publication of each block's entry
    pins: tuple[tuple[str, int], ...] = (("sender", 0),)  # (process, block)
    last: int = 1  # newest publication
    dead: frozenset[str] = frozenset()

    w_at: str = "idle"
    w_round: int = 0
    w_new: int = -1
    w_old: int = -1
    w_scan: int = 0  # next block to be looked at in limbo
    w_held: bool = False

    r_at: str = "idle"
    r_block: int = -1
    r_seq: int = 0
    c_at: str = "none"
    m_at: str = "idle"
    m_held: tuple[bool, ...] = ()
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
        scan = next((b for b in range(s.w_scan, BLOCKS) if s.place[b] == LIMBO), None)
        if scan is not None:
            place = s.place if broken == "looked at in limbo" else put(s.place, scan, LEAVING)
            yield replace(s, place=place, w_scan=scan, w_at="scan")
            return
        free = [b for b in range(BLOCKS) if s.place[b] == FREE]
        if not free:
            yield replace(s, lock="", w_at="idle", w_scan=0, w_round=s.w_round + 1)  # RegionFull
            return
        was = s.was if broken == "what it was stays" else put(s.was, free[0], 0)
        place = put(s.place, free[0], USED)
        yield replace(s, place=place, was=was, w_new=free[0], w_old=s.slot, w_scan=0, w_at="fill")
    elif at == "scan":
        yield replace(s, w_held=pinned(s, s.w_scan) and broken != "limbo not asked", w_at="scanned")
    elif at == "scanned":
        place = put(s.place, s.w_scan, LIMBO if s.w_held else FREE)
        yield replace(s, place=place, w_scan=s.w_scan + 1, w_held=False, w_at="take")
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
        yield replace(s, seq=put(s.seq, s.w_old, 0), was=put(s.was, s.w_old, s.seq[s.w_old]), w_at="leave")
    elif at == "leave":
        state = LIMBO if broken == "looked at in limbo" else LEAVING
        yield replace(s, place=put(s.place, s.w_old, state), w_at="look")
    elif at == "clear and free":
        yield replace(s, seq=put(s.seq, s.w_old, 0), place=put(s.place, s.w_old, FREE), w_at="unlock")
    elif at == "keep":
        yield replace(s, seq=put(s.seq, s.w_old, 0), place=put(s.place, s.w_old, LIMBO), w_at="unlock")
    elif at == "look":
        yield replace(s, w_held=pinned(s, s.w_old) and broken != "pins not asked", w_at="settle")
    elif at == "settle":
        held = s.w_held
        after = "slot" if broken == "withdraw before slot" else "unlock"
        yield replace(s, place=put(s.place, s.w_old, LIMBO if held else FREE), w_held=False, w_at=after)
    elif at == "unlock":
        yield replace(s, lock="", w_at="idle", w_round=s.w_round + 1, w_new=-1, w_old=-1)


def reader(s: State, broken: str) -> Iterator[State]:
    if "reader" in s.dead:
        return
    at = s.r_at
    if at == "idle":
        yield replace(s, r_at="entry", r_block=s.slot)
        if s.place[0] == LIMBO and s.was[0] == 1:
            yield replace(s, r_at="claim", r_block=0, r_seq=1)
    elif at == "claim":
        yield replace(with_pin(s, "reader", 0), r_at="claim again")
    elif at == "claim again":
        if (s.place[0] == LIMBO and s.was[0] == 1) or broken == "claim not checked again":
            yield replace(s, r_at="held")
        else:
            yield replace(without_pin(s, "reader"), r_at="idle")
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


def sender(s: State, _: str) -> Iterator[State]:
    if ("sender", 0) in s.pins and "sender" not in s.dead:
        yield without_pin(s, "sender")


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
        was = tuple(q if q and b != s.slot else s.was[b] for b, q in enumerate(s.seq))
        place = tuple(
            USED
            if b == s.slot
            else LEAVING
            if p != FREE and not (broken == "recovery looks at limbo" and p == LIMBO)
            else p
            for b, p in enumerate(s.place)
        )
        yield replace(s, seq=seq, was=was, place=place, m_at="rebuild")
    elif s.m_at == "rebuild":
        # What was withdrawn or half made: free, unless somebody living holds it.
        kept = tuple(pinned(s, b) and broken != "recovery asks no pins" for b in range(BLOCKS))
        yield replace(s, m_at="settle", m_held=kept)
    elif s.m_at == "settle":
        place = tuple(
            p if p in (FREE, USED) or broken == "recovery leaks" else LIMBO if held else FREE
            for p, held in zip(s.place, s.m_held, strict=True)
        )
        yield replace(s, place=place, m_at="unlock", m_held=())
    elif s.m_at == "unlock":
        # And goes on to write: the one writer stands for whoever does.
        again = {
            "w_at": "idle",
            "w_round": ROUNDS - 1,
            "w_new": -1,
            "w_old": -1,
            "w_scan": 0,
            "w_held": False,
        }
        again["dead"] = s.dead - {"writer"}
        yield replace(s, lock="", m_at="idle", mended=s.mended + 1, **again)


def kills(s: State) -> Iterator[State]:
    """At any point; the kernel frees the row, and with it the pins count no more."""
    started = {
        "writer": s.w_at != "idle",
        "reader": s.r_at not in ("idle", "done"),
        "child": s.c_at in ("held", "unpinned"),
        "sender": ("sender", 0) in s.pins,
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
            if b != s.slot and s.place[b] in (USED, LEAVING):
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
        for steps in (
            writer(s, broken),
            reader(s, broken),
            child(s, broken),
            sender(s, broken),
            mender(s, broken),
            kills(s),
        ):
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
    "looked at in limbo",
    "what it was stays",
    "claim not checked again",
    "child pins after fork",
    "recovery takes the index for the truth",
    "recovery leaks",
    "recovery asks no pins",
    "recovery looks at limbo",
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
