"""Judges and shows what callgrind has counted of examples/hot_paths; called by scripts/instructions.

    instructions.py check BUDGETS WORK     compare with the budgets
    instructions.py renew BUDGETS WORK     write the budgets
    instructions.py show WORK [CASE...]    by kind, and the greatest functions of cases that begin so

WORK has what the run left: `cases` (name, tab, operations), `machine` (what the counts depend on, as
`name: value`), and callgrind's `counts.1`, `counts.2` ..., one for each case in the same order.
"""

import json
import re
import sys
from pathlib import Path

# Counts are the same from run to run and from machine to machine. But what is inlined depends on how the
# compiler cuts crates into units, so that a change elsewhere, and even another directory, moves a case by
# up to 6 percent. (One unit for each crate would not; it makes every build of the tests half as long again.)
TOLERANCE_PERCENT = 10
# Of a case of few instructions, one call more is more than that.
TOLERANCE_INSTRUCTIONS = 100

# By the names of functions, first match wins; what was inlined counts as its caller. Of those marked True,
# with everything that they call.
KINDS = [
    ("copies", False, r"mem(cpy|move|set|cmp|chr)|copy_from_slice"),
    ("checksums", True, r"crc_fast|trefoil_crc|block_checksum|DataChecksum|header_checksum"),
    ("allocation", True, r"^_?mi_|^malloc|^free|__rust_(alloc|dealloc|realloc)|raw_vec|^alloc::alloc"),
    ("codec", False, r"core::wire|nbd::proto|postcard|store::codec|bytes::|Message>|serde"),
]
REST = "machines"


def kind_of(function):
    return next((n for n, (_, _, pattern) in enumerate(KINDS) if re.search(pattern, function)), None)


class Part:
    """What one dump of callgrind says: instructions of functions by themselves, and with what they call."""

    names = {}  # callgrind names each function once over all dumps of a run

    def __init__(self, path):
        self.total, self.own, self.inclusive, self.calls = 0, {}, {}, {}
        self.edges = {}  # caller and callee: instructions
        function = callee = None
        for line in path.read_text().splitlines():
            if match := re.match(r"(c?fn)=\((\d+)\)(?: (.*))?$", line):
                kind, number, name = match.groups()
                if name:
                    Part.names[number] = clean(name)
                if kind == "fn":
                    function = Part.names[number]
                else:
                    callee = Part.names[number]
            elif match := re.match(r"calls=(\d+)", line):
                self.calls[callee] = self.calls.get(callee, 0) + int(match[1])
            elif match := re.match(r"[-+*\d]\S* (\d+)$", line):
                cost = int(match[1])
                if callee is None:
                    self.own[function] = self.own.get(function, 0) + cost
                else:
                    edge = (function, callee)
                    self.edges[edge] = self.edges.get(edge, 0) + cost
                self.inclusive[function] = self.inclusive.get(function, 0) + cost
                callee = None
            elif match := re.match(r"summary: (\d+)", line):
                self.total = int(match[1])

    def kinds(self):
        sums = [0] * len(KINDS)
        for function, cost in self.own.items():
            kind = kind_of(function)
            if kind is not None and not KINDS[kind][1]:
                sums[kind] += cost
        for (caller, callee), cost in self.edges.items():
            kind = kind_of(callee)
            if kind is not None and KINDS[kind][1] and kind_of(caller) != kind:
                sums[kind] += cost
        return sums + [self.total - sum(sums)]


def clean(name):
    """A function's name without its hash and its types' long paths."""
    return re.sub(r"::h[0-9a-f]{16}$", "", name)


def read(work):
    """The cases in their order: name, operations, Part."""
    found = []
    for n, line in enumerate((work / "cases").read_text().splitlines(), 1):
        name, operations = line.split("\t")
        found.append((name, int(operations), Part(work / f"counts.{n}")))
    if not found:
        sys.exit("no case was counted")
    return found


def machine(work):
    lines = (work / "machine").read_text().splitlines()
    return dict(line.split(": ", 1) for line in lines)


def renew(path, work):
    cases = {name: round(part.total / operations, 1) for name, operations, part in read(work)}
    path.write_text(json.dumps({"machine": machine(work), "instructions": cases}, indent=2) + "\n")
    print(f"{len(cases)} budgets written to {path}")


def check(path, work):
    budgets = json.loads(path.read_text())
    now, then = machine(work), budgets["machine"]
    # Other compilers and other processors' instructions give other counts: shown, not judged.
    strange = [f"{key}: {now.get(key)}, budgets: {then.get(key)}" for key in then if now.get(key) != then[key]]
    over, under, unknown = [], [], []
    left = dict(budgets["instructions"])
    print(f"{'instructions per operation':44} {'now':>11} {'budget':>11}")
    for name, operations, part in read(work):
        count, budget = part.total / operations, left.pop(name, None)
        if budget is None:
            unknown.append(name)
            print(f"{name:44} {count:11,.1f} {'none':>11}")
            continue
        change = 100 * (count - budget) / budget
        room = max(budget * TOLERANCE_PERCENT / 100, TOLERANCE_INSTRUCTIONS)
        verdict = ""
        if count > budget + room:
            verdict = "OVER"
            over.append(f"{name}: {count:,.1f} instead of {budget:,.1f} ({change:+.1f} %)")
        elif count < budget - room:
            verdict = "less"
            under.append(name)
        print(f"{name:44} {count:11,.1f} {budget:11,.1f} {change:+6.1f} % {verdict}")
    if strange:
        print("SKIP instructions are shown and not judged, as the budgets are of another machine:")
        print("\n".join(f"    {line}" for line in strange))
        return
    if under:
        print(f"{len(under)} cases need less than their budget: renew them, so that it stays so")
    problems = [f"no budget: {name}" for name in unknown] + [f"not there any more: {name}" for name in left]
    problems += [f"over its budget: {line}" for line in over]
    if problems:
        print("\n".join(problems))
        print("See where they go: ./scripts/instructions --show CASE")
        print("If it is meant to be so: ./scripts/instructions --renew, and say why in the commit")
        sys.exit(1)


def show(work, wanted):
    cases = read(work)
    names = [name for name, _, _ in KINDS] + [REST]
    print(f"{'instructions per operation':40} {'all':>11} " + " ".join(f"{name:>10}" for name in names))
    for name, operations, part in cases:
        kinds = " ".join(f"{cost / operations:10,.0f}" for cost in part.kinds())
        print(f"{name:40} {part.total / operations:11,.1f} {kinds}")
    for name, operations, part in cases:
        if not any(name.startswith(prefix) for prefix in wanted):
            continue
        print(f"\n{name}: instructions per operation with callees, own; calls; function")
        for function, cost in sorted(part.inclusive.items(), key=lambda item: -item[1]):
            # What leads there, not what is counted.
            if re.search(r"below main|^main$|^hot_paths::|lang_start|__rust_begin|__libc_start|^0x", function):
                continue
            if cost >= part.total / 200:
                own, calls = part.own.get(function, 0) / operations, part.calls.get(function, 0) / operations
                print(f"{cost / operations:11,.1f} {own:11,.1f} {calls:7.2f}  {function[:150]}")


if __name__ == "__main__":
    if sys.argv[1] == "show":
        show(Path(sys.argv[2]), sys.argv[3:])
    else:
        {"check": check, "renew": renew}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
