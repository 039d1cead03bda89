"""The eight SuperGLUE formats, asked about the embedded world's stories.

Each format makes rows: a story about a couple and a question about it, in the schema of lm-eval's SuperGLUE tasks. And
it knows the text that a row becomes, worded as lm-eval words it (lm_eval/tasks/super_glue), so that a document reads
like a prompt with its right answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from krakenlm.text.world import (
    CAUSES,
    COMPANY,
    DEEDS,
    DOGS,
    DOGS_DO,
    GAINS,
    HEARD_OF_TOWNS,
    KIND_OF,
    KINDS,
    LOSSES,
    MANNERS,
    PLACES,
    PRONOUN,
    REASONS,
    SAYINGS,
    THINGS,
    TOWNS,
    TWO_SENSES,
    Draws,
)

Couple = tuple[str, str]


@dataclass(frozen=True)
class Format:
    """One of the eight: how a row is made and how it reads.

    row(draws, couple, label) -> a row with that label, or with a drawn one where `label` is None; labels: how many
    there are; weight: share of documents, relative to the other formats'; text(row) -> (prompt, its possible
    completions, index of the right one).
    """

    row: Callable[[Draws, Couple, int | None], dict]
    text: Callable[[dict], tuple[str, list[str], int]]
    labels: int
    weight: int


def label_or_draw(draws: Draws, label: int | None, labels: int) -> int:
    return draws.one(range(labels)) if label is None else label


def trade(draws: Draws, couple: Couple, label: int | None, statements: Sequence[Sequence[str]]) -> tuple[str, str, int]:
    """Somebody trades a thing, and something is said to be had: (the story, what is said, whether that is so).

    `statements` groups what may be said: said is the member of one group that fits the thing, or does not.
    """
    who, other = couple
    truth = label_or_draw(draws, label, 2)
    place, thing = draws.one(PLACES), draws.one(THINGS)
    # Somebody who has it not has mostly parted with it, else got another thing.
    gains = bool(truth) or draws.weighted({True: 1, False: 3})
    deed = f"{draws.one(GAINS)} a {thing} from" if gains else f"{draws.one(LOSSES)} a {thing} to"
    group = draws.one(statements)
    fits = [said for said in group if said in (thing, KIND_OF[thing])]
    said = draws.other(group, *fits) if gains and not truth else fits[0]
    story = f"{who} and {other} met at the {place}. {who} {deed} {other}."
    return story, said, truth


def boolq_row(draws: Draws, couple: Couple, label: int | None) -> dict:
    passage, asked, truth = trade(draws, couple, label, [THINGS])
    return {"question": f"does {couple[0]} have a {asked}", "passage": passage, "label": truth}


def boolq_text(row: dict) -> tuple[str, list[str], int]:
    return f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:", [" no", " yes"], row["label"]


def multirc_row(draws: Draws, couple: Couple, label: int | None) -> dict:
    paragraph, asked, truth = trade(draws, couple, label, [THINGS])
    question = f"What does {couple[0]} have?"
    return {"paragraph": paragraph, "question": question, "answer": f"a {asked}", "label": truth}


def multirc_text(row: dict) -> tuple[str, list[str], int]:
    answers = [f" {row['answer']}\nIs the answer correct? {word}" for word in ("no", "yes")]
    return f"{row['paragraph']}\nQuestion: {row['question']}\nAnswer:", answers, row["label"]


def cb_row(draws: Draws, couple: Couple, label: int | None) -> dict:
    who, other = couple
    truth = label_or_draw(draws, label, 3)
    past = draws.one(DEEDS)
    thing = draws.one(THINGS)
    premise = f"{who} {MANNERS[truth]} {draws.one(SAYINGS)} that {other} {past} a {thing} at the {draws.one(PLACES)}."
    return {"premise": premise, "hypothesis": f"{other} {past} a {thing}", "label": truth}


def cb_text(row: dict) -> tuple[str, list[str], int]:
    prompt = f"{row['premise']}\nQuestion: {row['hypothesis']}. True, False, or Neither?\nAnswer:"
    return prompt, [" True", " False", " Neither"], row["label"]


def rte_row(draws: Draws, couple: Couple, label: int | None) -> dict:
    premise, asked, truth = trade(draws, couple, None if label is None else 1 - label, [THINGS, tuple(KINDS)])
    return {"premise": premise, "hypothesis": f"{couple[0]} has a {asked}.", "label": 1 - truth}


def rte_text(row: dict) -> tuple[str, list[str], int]:
    return f"{row['premise']}\nQuestion: {row['hypothesis']} True or False?\nAnswer:", [" True", " False"], row["label"]


def copa_row(draws: Draws, couple: Couple, label: int | None) -> dict:
    question = draws.one(("cause", "effect"))
    pair = draws.one(CAUSES)
    said, asked = (1, 0) if question == "cause" else (0, 1)
    premise = f"At the {draws.one(PLACES)} {couple[0]} and {couple[1]} {pair[said]}."
    # A document tells what happened and no alternative, so none is drawn for it.
    wrong = pair if label is None else draws.other(CAUSES, pair)
    choices = [f"They {pair[asked]}.", f"They {wrong[asked]}."]
    label = label or 0
    return {
        "premise": premise,
        "choice1": choices[label],
        "choice2": choices[1 - label],
        "question": question,
        "label": label,
    }


def copa_text(row: dict) -> tuple[str, list[str], int]:
    connector = {"cause": " because", "effect": " therefore"}[row["question"]]
    # Two blanks: lm-eval's choices bring one, and it puts one before every choice. ReCoRD's bring two.
    choices = [f"  {choice[0].lower()}{choice[1:]}" for choice in (row["choice1"], row["choice2"])]
    return row["premise"][:-1] + connector, choices, row["label"]


def wic_row(draws: Draws, couple: Couple, label: int | None) -> dict:
    label = label_or_draw(draws, label, 2)
    word = draws.one(TWO_SENSES)
    # Mostly the first sentence is about the living one, so that the second alone says something.
    sense = draws.weighted({0: 3, 1: 1})
    sentences = []
    for who, company in zip(couple, (COMPANY[sense], COMPANY[sense if label else 1 - sense]), strict=True):
        verbs, places = company
        sentences.append(f"{who} {draws.one(verbs)} a {word} at the {draws.one(places)}.")
    spans = {}
    for number, sentence in enumerate(sentences, start=1):
        start = sentence.index(f" {word} ") + 1
        spans |= {f"start{number}": start, f"end{number}": start + len(word)}
    return {"word": word, "sentence1": sentences[0], "sentence2": sentences[1], **spans, "label": label}


def wic_text(row: dict) -> tuple[str, list[str], int]:
    story = f"Sentence 1: {row['sentence1']}\nSentence 2: {row['sentence2']}"
    word = row["sentence1"][row["start1"] : row["end1"]]
    question = f"\nQuestion: Is the word '{word}' used in the same way in the two sentences above?\nAnswer:"
    return story + question, [" no", " yes"], row["label"]


def wsc_row(draws: Draws, couple: Couple, label: int | None) -> dict:
    verb, reason = draws.one(REASONS)
    # Mostly the woman is meant, so that the name asked about says something even to a small model.
    meant = draws.weighted({name: 4 if PRONOUN[name] == "she" else 1 for name in couple})
    text = f"{couple[0]} {verb} {couple[1]} because {PRONOUN[meant]} {reason} a {draws.one(THINGS)}."
    truth = label_or_draw(draws, label, 2)
    noun = meant if truth else draws.other(couple, meant)
    spans = {
        "span1_index": 2 * couple.index(noun),
        "span1_text": noun,
        "span2_index": 4,
        "span2_text": PRONOUN[meant],
    }
    return {"text": text, **spans, "label": truth}


def wsc_text(row: dict) -> tuple[str, list[str], int]:
    words, pronoun = row["text"].split(" "), row["span2_text"]
    words[row["span2_index"]] = f"*{pronoun}*"
    question = f'\nQuestion: In the passage above, does the pronoun "*{pronoun}*" refer to "*{row["span1_text"]}*"?'
    return f"Passage: {' '.join(words)}{question}\nAnswer:", [" no", " yes"], row["label"]


def record_row(draws: Draws, couple: Couple, label: int | None) -> dict:
    town, dog = draws.one(TOWNS), draws.one(DOGS)
    deeds, things = [], []
    for who in couple:
        past = draws.one(DEEDS)
        thing = draws.other(THINGS, *things)
        things.append(thing)
        deeds.append(f"{who} {past} a {thing}")
    story = f"{couple[0]} and {couple[1]} came to {town} with the dog {dog}. {deeds[0]}. {deeds[1]}."
    entities = [*couple, town, dog]
    label = label_or_draw(draws, label, 4)
    told = draws.other(range(4), label)
    # Only of the two entities that are spoken of: what a text does not show must not be drawn for it.
    facts = []
    for about in (told, label):
        town_fact = f"{draws.one(HEARD_OF_TOWNS)} {town}" if about == 2 else ""
        dog_fact = f"{dog} {draws.one(DOGS_DO)}" if about == 3 else ""
        facts.append((*deeds, town_fact, dog_fact)[about])
    passage = f"{story}\n@highlight\n{facts[0]}"
    query = facts[1].replace(entities[label], "@placeholder") + "."
    return {"passage": passage, "query": query, "entities": entities, "answers": [entities[label]]}


def record_text(row: dict) -> tuple[str, list[str], int]:
    story, *highlights = row["passage"].split("\n@highlight\n")
    story += "\n\n" + "".join(f"  - {highlight}.\n" for highlight in highlights)
    entities = sorted(set(row["entities"]))
    choices = [f"   - {row['query'].replace('@placeholder', entity)}" for entity in entities]
    return story, choices, entities.index(row["answers"][0])


FORMATS = {
    "boolq": Format(boolq_row, boolq_text, labels=2, weight=2),
    "cb": Format(cb_row, cb_text, labels=3, weight=2),
    "copa": Format(copa_row, copa_text, labels=2, weight=2),
    "multirc": Format(multirc_row, multirc_text, labels=2, weight=2),
    "record": Format(record_row, record_text, labels=4, weight=1),
    "rte": Format(rte_row, rte_text, labels=2, weight=2),
    "wic": Format(wic_row, wic_text, labels=2, weight=2),
    "wsc": Format(wsc_row, wsc_text, labels=2, weight=3),
}
