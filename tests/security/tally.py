"""What was attacked, and how often: a case is one kind of attack on one route, method or frame, however often it was tried."""

from collections import Counter
from collections.abc import Iterable


class Tally:
    """Counts of one run. `tried` is called for every attempt; what was not refused as documented fails its test instead."""

    def __init__(self) -> None:
        self._attempts: Counter[tuple[str, str, str]] = Counter()

    def tried(self, line: str, attack: str, target: str, times: int = 1) -> None:
        """An attempt. `line` is that of the security catalogue, `attack` the kind, `target` what was attacked."""
        self._attempts[line, attack, target] += times

    def rows(self) -> list[list[str | int]]:
        """Line, attack, target and attempts of every case, as plain values: what `add` takes in another process."""
        return [[*key, times] for key, times in sorted(self._attempts.items())]

    def add(self, rows: Iterable[list[str | int]]) -> None:
        """Another process's part of the run. A case that both tried is one case."""
        for line, attack, target, times in rows:
            self.tried(str(line), str(attack), str(target), int(times))

    def of(self, line: str) -> tuple[int, int]:
        """Distinct cases and attempts of one line of the catalogue; of all of them for an empty one."""
        found = {key: times for key, times in self._attempts.items() if not line or key[0] == line}
        return len(found), sum(found.values())

    def report(self) -> list[str]:
        """A line for each line of the catalogue, and the sum."""
        lines = sorted({key[0] for key in self._attempts}, key=lambda line: int(line.rpartition("-")[2]))
        said = []
        for line in lines:
            cases, attempts = self.of(line)
            attacks = sorted({key[1] for key in self._attempts if key[0] == line})
            said.append(f"{line:<7}{cases:>6} cases {attempts:>8} attempts   {', '.join(attacks)}")
        cases, attempts = self.of("")
        said.append(
            f"{'all':<7}{cases:>6} cases {attempts:>8} attempts   (a case is a kind of attack on one route, method or frame)"
        )
        return said
