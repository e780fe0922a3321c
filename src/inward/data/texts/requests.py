"""Requests to a chat model, from templates: ordinary ones, and ones with repetitive answers.

A draft-only adapter learns from what its model says: what it is asked decides what it can draft. A
model that asks itself (`inward.recipes.tidar.OwnText`) seldom asks for lists, tables, code or
copies, where drafts could be longest; these requests do.

The same seed gives the same requests; no two of a call are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

THINGS = (
    "a bicycle|a lighthouse|a kitchen knife|a garden|a violin|a compass|a wooden table|a boat|"
    "a telescope|a clay pot|a wool sweater|a suspension bridge|a steam engine|a chess set|a tent|"
    "a fireplace|a water mill|a paper kite|a bookshelf|a solar panel|a thermometer|a canoe|a piano|"
    "a greenhouse|a sewing machine|a pair of glasses|a drum|a ladder|a candle|a sundial"
).split("|")
SUBJECTS = (
    "volcanoes|tides|photosynthesis|the water cycle|bees|glaciers|gravity|earthquakes|inflation|"
    "vaccines|rainbows|sleep|the moon|magnets|recycling|coral reefs|batteries|the heart|deserts|"
    "democracy|computer memory|fermentation|whales|the printing press|friendship|patience|"
    "the Roman Empire|migration of birds|electric cars|languages|maps|forests|cheese|time zones|"
    "clouds|antibiotics|steel|jazz|libraries|rivers|dinosaurs|owls|the alphabet|taxes"
).split("|")
ACTIVITIES = (
    "learning to swim|cooking rice|planting tomatoes|writing a diary|moving to a new city|"
    "saving money|running in winter|reading to children|painting a room|training a dog|"
    "learning a language|baking a cake|fixing a flat tyre|preparing for an exam|camping|"
    "keeping a cat|making coffee|giving a speech|growing herbs|playing the guitar|hiking alone|"
    "working from home|sorting photographs|hosting a dinner|sleeping better"
).split("|")
PEOPLE = (
    "a baker|a retired teacher|two sisters|a young fisherman|an inventor|a nurse|a lonely robot|"
    "a gardener|a train driver|a shy student|an old sailor|a clockmaker|a postman|a violinist|"
    "a shepherd|a boy and his grandfather|a librarian|a night watchman|a painter|a mountain guide"
).split("|")
EVENTS = (
    "a lost key|a snowy evening|a letter without a name|a long bridge|a broken promise|"
    "a strange noise|an unexpected guest|a missed train|a forgotten song|a small victory|"
    "a hidden door|a power cut|a market day|a difficult choice|a birthday|a flood|a found coin"
).split("|")
GROUPS = (
    "planets of the solar system|days of the week|seasons of the year|colors of the rainbow|"
    "continents|oceans|countries in Europe|fruits|vegetables|animals on a farm|musical instruments|"
    "chess pieces|tools in a workshop|kinds of trees|sports|programming languages|spices|"
    "kinds of weather|parts of a bicycle|rooms of a house|jobs in a hospital|states of the USA|"
    "rivers of the world|chemical elements|birds|school subjects|Greek letters|kinds of pasta"
).split("|")
TASKS = (
    "reverses a string|checks whether a number is prime|computes the factorial of n|"
    "counts the words in a text|sorts a list of numbers|removes duplicates from a list|"
    "finds the largest of three numbers|converts Celsius to Fahrenheit|merges two dictionaries|"
    "computes the n-th Fibonacci number|checks whether a word is a palindrome|"
    "computes the average of a list|counts the vowels in a word|flattens a nested list|"
    "computes the greatest common divisor|reads a file line by line|filters even numbers|"
    "computes the area of a circle|multiplies two matrices|finds the index of a value"
).split("|")
SENTENCES = (
    "The river was high after three days of rain.|A good map is worth more than a fast horse.|"
    "She opened the window and let the morning in.|Every student received a book and a pencil.|"
    "The old clock on the wall had stopped at noon.|We walked home slowly under the street lights.|"
    "The train to the coast leaves at half past six.|He planted an apple tree behind the house.|"
    "Nobody in the village remembered such a winter.|The museum is closed on the first Monday.|"
    "Two gulls followed the boat into the harbour.|The recipe needs flour, butter and some salt.|"
    "My grandmother kept her letters in a blue box.|The team won the last game of the season.|"
    "A cold wind came down from the mountains.|The children built a bridge out of stones.|"
    "Please return the key to the front desk.|The lake froze early and the boats stayed ashore.|"
    "He wrote the number on the back of an envelope.|The bakery opens before the sun is up."
).split("|")

Words = Callable[[Sequence[str]], str]
Number = Callable[[int, int], int]


def _ordinary(word: Words, number: Number) -> list[str]:
    return [
        f"Explain {word(SUBJECTS)} in a few sentences.",
        f"Why are {word(SUBJECTS)} important?",
        f"What should a beginner know about {word(ACTIVITIES)}?",
        f"Describe {word(THINGS)} to someone who has never seen one.",
        f"Tell a short story about {word(PEOPLE)} and {word(EVENTS)}.",
        f"Write a message to a neighbour about {word(ACTIVITIES)}.",
        f"How is {word(THINGS)} made?",
        f"What are the advantages and disadvantages of {word(ACTIVITIES)}?",
        f"Compare {word(SUBJECTS)} and {word(SUBJECTS)}.",
        f"Give me advice about {word(ACTIVITIES)}.",
        f"Write a paragraph about {word(EVENTS)}.",
        f"What is the history of {word(SUBJECTS)}?",
        f"How can I explain {word(SUBJECTS)} to a child of {number(5, 12)}?",
        f"Write a poem about {word(EVENTS)} and {word(PEOPLE)}.",
        f"What happens if {word(THINGS)} breaks?",
        f"Summarize what is known about {word(SUBJECTS)}.",
    ]


def _repetitive(word: Words, number: Number) -> list[str]:
    first, step = number(1, 40), number(2, 9)
    return [
        f"Count from {first} to {first + number(15, 50)}, one number per line.",
        f"Count down from {number(20, 60)} to {number(1, 9)}, separated by commas.",
        f"Write the multiples of {step} from {step} to {step * number(12, 25)}.",
        f"Write the multiplication table of {number(2, 15)}.",
        f"List {number(5, 20)} {word(GROUPS)}, one per line.",
        f"Make a numbered list of {number(5, 15)} {word(GROUPS)}.",
        f"Make a table of {number(4, 8)} {word(GROUPS)} with one property of each.",
        f"Write a JSON list of {number(4, 9)} {word(GROUPS)} with the fields id and name.",
        f"Write a Python function that {word(TASKS)}.",
        f"Write a Python function that {word(TASKS)} and another one that {word(TASKS)}.",
        f"Write a JavaScript function that {word(TASKS)}, then call it three times.",
        f"Write a test for a function that {word(TASKS)}.",
        f"Repeat this sentence {number(4, 12)} times: {word(SENTENCES)}",
        f"Write the word '{word(SENTENCES).split()[1]}' {number(10, 30)} times.",
        f"Copy this text exactly: '{word(SENTENCES)} {word(SENTENCES)} {word(SENTENCES)}'",
        f"Put these sentences in the opposite order: {word(SENTENCES)} {word(SENTENCES)}",
        f"Repeat after me: {word(SENTENCES)} {word(SENTENCES)}",
        f"Spell the alphabet from the letter {chr(97 + number(0, 9))}, one letter per line.",
    ]


KINDS = {"ordinary": _ordinary, "repetitive": _repetitive}


def requests(kind: str, num: int, *, seed: int = 0) -> list[str]:
    """`num` different requests of one kind, "ordinary" or "repetitive".

    Raises:
        ValueError: another kind; fewer than 0; more than the templates give.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; there are {', '.join(KINDS)}")
    if num < 0:
        raise ValueError(f"num is {num}, must be 0 or more")
    rng = np.random.default_rng([seed, list(KINDS).index(kind)])
    templates = KINDS[kind]

    def word(words: Sequence[str]) -> str:
        return words[int(rng.integers(len(words)))]

    def number(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    found: dict[str, None] = {}
    misses = 0
    while len(found) < num and misses < 1000:
        before, choices = len(found), templates(word, number)
        found[choices[int(rng.integers(len(choices)))]] = None
        misses = 0 if len(found) > before else misses + 1
    if len(found) < num:
        raise ValueError(f"num is {num}; the {kind} templates gave {len(found)}; ask for fewer")
    return list(found)
