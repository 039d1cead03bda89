"""Print, for each embedded task, the accuracy of the best rule that looks at whether one word occurs in the prompt.

    python benchmarks/one_word_rules.py

The rule is chosen on 2000 rows of another seed and scored on the rows that the models are scored on. A model that does
no better has learned a cue, not the task.
"""

from collections import Counter, defaultdict

from krakenlm.text.embedded import HELD_OUT_COUPLES
from krakenlm.text.formats import FORMATS
from krakenlm.text.world import Draws

TASK_SEED, EXAMPLES, OTHER_SEED, TRAINING_ROWS = 1, 300, 2, 2000


def rows(name: str, seed: int, count: int) -> list[tuple[set[str], int]]:
    chosen, draws = FORMATS[name], Draws(f"{name} {seed}")
    drawn = (chosen.row(draws, draws.one(HELD_OUT_COUPLES), number % chosen.labels) for number in range(count))
    return [(set(prompt.split()), right) for prompt, _, right in map(chosen.text, drawn)]


def best_rule(examples: list[tuple[set[str], int]]) -> tuple[str, int, int]:
    """(word, the answer where it occurs, the answer where it does not) that is right most often."""
    everywhere, with_word = Counter(right for _, right in examples), defaultdict(Counter)
    for words, right in examples:
        for word in words:
            with_word[word][right] += 1
    best = {}
    for word, counts in with_word.items():
        present, absent = counts.most_common(1)[0], (everywhere - counts).most_common(1) or [(0, 0)]
        best[word] = (present[1] + absent[0][1], present[0], absent[0][0])
    word = max(sorted(best), key=lambda word: best[word][0])
    return word, best[word][1], best[word][2]


def main() -> None:
    print("| task | word | accuracy of the rule | largest class |\n|---|---|---|---|")
    for name in FORMATS:
        word, present, absent = best_rule(rows(name, OTHER_SEED, TRAINING_ROWS))
        scored = rows(name, TASK_SEED, EXAMPLES)
        right = sum((present if word in words else absent) == answer for words, answer in scored)
        largest = Counter(answer for _, answer in scored).most_common(1)[0][1]
        print(f"| {name} | {word} | {right / EXAMPLES:.3f} | {largest / EXAMPLES:.3f} |")


if __name__ == "__main__":
    main()
