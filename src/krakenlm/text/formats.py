"""The eight SuperGLUE formats, asked about the embedded world's stories.

Each format is a function `(draws, couple, label) -> rows`: a story about a couple and the questions asked about it,
one row each, in the schema of lm-eval's SuperGLUE tasks. The first row's label is `label` where given, else drawn.
Each format also has the text that a row becomes: what it shares with the other rows of its story, its question, its
answers, as lm-eval words them (lm_eval/tasks/super_glue), so that a document reads like the prompts.
"""

from collections.abc import Callable
from dataclasses import dataclass

from krakenlm.text.world import (
    ATTITUDES,
    CAUSES,
    COMPANY,
    DEEDS,
    DOGS,
    DOGS_DO,
    HEARD_OF_TOWNS,
    KIND_OF,
    KINDS,
    PLACES,
    PRONOUN,
    REASONS,
    THINGS,
    TOWNS,
    TWO_SENSES,
    Draws,
)

Couple = tuple[str, str]
Rows = list[dict]


@dataclass(frozen=True)
class Format:
    """One of the eight: how rows are made and how they read.

    rows(draws, couple, label) -> rows of one story; labels: how many there are; text(row) -> (story, question,
    answers, index of the right answer), which joined are a prompt and its completions.
    """

    rows: Callable[[Draws, Couple, int | None], Rows]
    labels: int
    text: Callable[[dict], tuple[str, str, list[str], int]]


def label_or_draw(draws: Draws, label: int | None, labels: int) -> int:
    return draws.one(range(labels)) if label is None else label


def tell(draws: Draws, couple: Couple) -> tuple[str, str, list[tuple[str, str, str, str]]]:
    """A story: (text, place, [(who, past tense, base form, thing) of either])."""
    place = draws.one(PLACES)
    deeds, things = [], []
    for who in couple:
        past, base = draws.one(DEEDS)
        thing = draws.other(THINGS, *things)
        things.append(thing)
        deeds.append((who, past, base, thing))
    sentences = [f"{couple[0]} and {couple[1]} went to the {place}."]
    sentences += [f"{who} {past} a {thing}." for who, past, _, thing in deeds]
    before, after = draws.one(CAUSES)
    sentences.append(f"They {before}, so they {after}.")
    return " ".join(sentences), place, deeds


def wrong_thing(draws: Draws, right: str, others: str) -> str:
    """Mostly a thing the story never names; one time in four the other person's, which is harder to tell."""
    return others if draws.chance(1, 4) else draws.other(THINGS, right, others)


def boolq_rows(draws: Draws, couple: Couple, label: int | None = None) -> Rows:
    passage, place, deeds = tell(draws, couple)
    rows = []
    for (who, _, base, thing), (*_, others) in zip(deeds, reversed(deeds), strict=True):
        truth = label_or_draw(draws, label if not rows else None, 2)
        asked = thing if truth else wrong_thing(draws, thing, others)
        rows.append({"question": f"did {who} {base} a {asked}", "passage": passage, "label": truth})
    truth = label_or_draw(draws, None, 2)
    asked = place if truth else draws.other(PLACES, place)
    rows.append({"question": f"did they go to the {asked}", "passage": passage, "label": truth})
    return rows


def boolq_text(row: dict) -> tuple[str, str, list[str], int]:
    return row["passage"], f"\nQuestion: {row['question']}?\nAnswer:", [" no", " yes"], row["label"]


def multirc_rows(draws: Draws, couple: Couple, label: int | None = None) -> Rows:
    paragraph, place, deeds = tell(draws, couple)
    rows = []
    for (who, _, base, thing), (*_, others) in zip(deeds, reversed(deeds), strict=True):
        truth = label_or_draw(draws, label if not rows else None, 2)
        answer = f"a {thing if truth else wrong_thing(draws, thing, others)}"
        rows.append({"paragraph": paragraph, "question": f"What did {who} {base}?", "answer": answer, "label": truth})
    truth = label_or_draw(draws, None, 2)
    answer = f"the {place if truth else draws.other(PLACES, place)}"
    rows.append({"paragraph": paragraph, "question": "Where did they go?", "answer": answer, "label": truth})
    return rows


def multirc_text(row: dict) -> tuple[str, str, list[str], int]:
    answers = [f" {row['answer']}\nIs the answer correct? {word}" for word in ("no", "yes")]
    return row["paragraph"], f"\nQuestion: {row['question']}\nAnswer:", answers, row["label"]


def cb_rows(draws: Draws, couple: Couple, label: int | None = None) -> Rows:
    who, other = couple
    truth = label_or_draw(draws, label, 3)
    past, _ = draws.one(DEEDS)
    thing = draws.one(THINGS)
    # Of what is not known, a quarter is a certain statement about something else.
    aside = truth == 2 and draws.chance(1, 4)
    verb = draws.one(ATTITUDES[0 if aside else truth])
    premise = f"{who} {verb} that {other} {past} a {thing} at the {draws.one(PLACES)}."
    asked = draws.other(THINGS, thing) if aside else thing
    return [{"premise": premise, "hypothesis": f"{other} {past} a {asked}", "label": truth}]


def cb_text(row: dict) -> tuple[str, str, list[str], int]:
    question = f"\nQuestion: {row['hypothesis']}. True, False, or Neither?\nAnswer:"
    return row["premise"], question, [" True", " False", " Neither"], row["label"]


def rte_rows(draws: Draws, couple: Couple, label: int | None = None) -> Rows:
    giver, taker = couple
    label = label_or_draw(draws, label, 2)
    thing = draws.one(THINGS)
    premise = f"{giver} gave {taker} a {thing} at the {draws.one(PLACES)}."
    if draws.chance(1, 2):
        asked = KIND_OF[thing] if label == 0 else draws.other(tuple(KINDS), KIND_OF[thing])
    else:
        asked = thing if label == 0 else draws.other(THINGS, thing)
    return [{"premise": premise, "hypothesis": f"{taker} got a {asked}.", "label": label}]


def rte_text(row: dict) -> tuple[str, str, list[str], int]:
    question = f"\nQuestion: {row['hypothesis']} True or False?\nAnswer:"
    return row["premise"], question, [" True", " False"], row["label"]


def copa_rows(draws: Draws, couple: Couple, label: int | None = None) -> Rows:
    question = draws.one(("cause", "effect"))
    pair = draws.one(CAUSES)
    said, asked = (1, 0) if question == "cause" else (0, 1)
    premise = f"At the {draws.one(PLACES)} {couple[0]} and {couple[1]} {pair[said]}."
    # A document tells what happened and no alternative, so none is drawn for it.
    wrong = pair if label is None else draws.other(CAUSES, pair)
    choices = [f"They {pair[asked]}.", f"They {wrong[asked]}."]
    label = label or 0
    return [
        {
            "premise": premise,
            "choice1": choices[label],
            "choice2": choices[1 - label],
            "question": question,
            "label": label,
        }
    ]


def copa_text(row: dict) -> tuple[str, str, list[str], int]:
    connector = {"cause": " because", "effect": " therefore"}[row["question"]]
    choices = [f" {choice[0].lower()}{choice[1:]}" for choice in (row["choice1"], row["choice2"])]
    return row["premise"].strip()[:-1], connector, choices, row["label"]


def wic_rows(draws: Draws, couple: Couple, label: int | None = None) -> Rows:
    label = label_or_draw(draws, label, 2)
    word = draws.one(TWO_SENSES)
    sense = draws.one((0, 1))
    sentences = []
    for who, company in zip(couple, (COMPANY[sense], COMPANY[sense if label else 1 - sense]), strict=True):
        verbs, places = company
        sentences.append(f"{who} {draws.one(verbs)} a {word} at the {draws.one(places)}.")
    spans = {}
    for number, sentence in enumerate(sentences, start=1):
        start = sentence.index(f" {word} ") + 1
        spans |= {f"start{number}": start, f"end{number}": start + len(word)}
    return [{"word": word, "sentence1": sentences[0], "sentence2": sentences[1], **spans, "label": label}]


def wic_text(row: dict) -> tuple[str, str, list[str], int]:
    story = f"Sentence 1: {row['sentence1']}\nSentence 2: {row['sentence2']}"
    word = row["sentence1"][row["start1"] : row["end1"]]
    question = f"\nQuestion: Is the word '{word}' used in the same way in the two sentences above?\nAnswer:"
    return story, question, [" no", " yes"], row["label"]


def wsc_rows(draws: Draws, couple: Couple, label: int | None = None) -> Rows:
    verb, reason = draws.one(REASONS)
    meant = draws.one(couple)
    other = couple[1] if meant == couple[0] else couple[0]
    text = f"{couple[0]} {verb} {couple[1]} because {PRONOUN[meant]} {reason} a {draws.one(THINGS)}."
    first = label_or_draw(draws, label, 2)
    rows = []
    for truth in (first, 1 - first):
        noun = meant if truth else other
        spans = {
            "span1_index": 2 * couple.index(noun),
            "span1_text": noun,
            "span2_index": 4,
            "span2_text": PRONOUN[meant],
        }
        rows.append({"text": text, **spans, "label": truth})
    return rows


def wsc_text(row: dict) -> tuple[str, str, list[str], int]:
    words, pronoun = row["text"].split(" "), row["span2_text"]
    words[row["span2_index"]] = f"*{pronoun}*"
    question = f'\nQuestion: In the passage above, does the pronoun "*{pronoun}*" refer to "*{row["span1_text"]}*"?'
    return f"Passage: {' '.join(words)}", f"{question}\nAnswer:", [" no", " yes"], row["label"]


def record_rows(draws: Draws, couple: Couple, label: int | None = None) -> Rows:
    town, dog = draws.one(TOWNS), draws.one(DOGS)
    deeds, things = [], []
    for who in couple:
        past, _ = draws.one(DEEDS)
        thing = draws.other(THINGS, *things)
        things.append(thing)
        deeds.append(f"{who} {past} a {thing}")
    story = f"{couple[0]} and {couple[1]} came to {town} with the dog {dog}. {deeds[0]}. {deeds[1]}."
    entities = [*couple, town, dog]
    facts = [*deeds, f"{draws.one(HEARD_OF_TOWNS)} {town}", f"{dog} {draws.one(DOGS_DO)}"]
    label = label_or_draw(draws, label, 4)
    told = draws.other(range(4), label)
    query = facts[label].replace(entities[label], "@placeholder") + "."
    passage = f"{story}\n@highlight\n{facts[told]}"
    return [{"passage": passage, "query": query, "entities": entities, "answers": [entities[label]]}]


def record_text(row: dict) -> tuple[str, str, list[str], int]:
    story, *highlights = row["passage"].split("\n@highlight\n")
    story += "\n\n" + "".join(f"  - {highlight}.\n" for highlight in highlights)
    entities = sorted(set(row["entities"]))
    choices = [f"  - {row['query'].replace('@placeholder', entity)}" for entity in entities]
    return story, "", choices, entities.index(row["answers"][0])


FORMATS = {
    "boolq": Format(boolq_rows, 2, boolq_text),
    "cb": Format(cb_rows, 3, cb_text),
    "copa": Format(copa_rows, 2, copa_text),
    "multirc": Format(multirc_rows, 2, multirc_text),
    "record": Format(record_rows, 4, record_text),
    "rte": Format(rte_rows, 2, rte_text),
    "wic": Format(wic_rows, 2, wic_text),
    "wsc": Format(wsc_rows, 2, wsc_text),
}
