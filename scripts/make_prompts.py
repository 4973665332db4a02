"""Write the prompt files of data/: captions of the small world, and English prompts for real text-to-image models.

    python scripts/make_prompts.py [--seed 0] [--out data]

The English prompts come from GRAMMAR, a small grammar of our own. There are 16 families of subjects; each gives a core
("a sleepy otter on a mossy log"), which a frame turns into a caption, a sentence or a list of tags. The families take
turns, so the first N prompts of a file are always a fair mixture. Same seed, same bytes.
"""

import argparse
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from dpdmd.shapes import pairs
from dpdmd.shapes.categories import COLOUR_SHAPE, OF_ONE, OF_TWO, category
from dpdmd.shapes.world import ATTRIBUTES, all_captions, caption
from dpdmd.utils.atomic_files import write_text
from dpdmd.utils.rng import numpy_generator

NUM_TRAIN, NUM_EVAL, NUM_EVAL_SHORT = 4000, 200, 16
NUM_GENEVAL = 16  # of each category
NUM_PAIRS = 1491  # training captions of two objects, beside the small world's 509: 2,000
MIN_WORDS, MAX_WORDS = 4, 40

# Blocks of word lists. "[name < parent]" begins one that also knows its parent's lists; an indented line continues the
# one above. "{colour}" is a slot, filled from that list; no entry is drawn twice in one prompt. Every block with a
# `core` is a family. `where` follows a core at once, `light` follows "in", `behind` precedes "in the background".
GRAMMAR = """
[all]
colour: red | green | blue | yellow | purple | orange | pink | white | black | turquoise
mood: calm | lonely | playful | mysterious | nostalgic | cheerful | solemn | dreamy | tense | tender | hopeful
palette: muted colours | warm earth tones | cool blues and greys | faded pastels | vivid colours
sign: open late | fresh bread today | welcome | mind the step | closed for winter | see you soon | good morning
art_tag: intricate detail | soft shading | bold outlines | textured surface | limited palette | hand-made feel
    | balanced composition | strong silhouettes | delicate linework

[scene < all]
photo: photograph | film photograph | high-resolution photo | magazine photograph | quiet documentary photo
photo_tag: shallow depth of field | sharp focus | fine film grain | natural colours | 50mm lens | wide aperture
    | high detail | centred composition | rule of thirds | soft bokeh | high dynamic range | 8k | award-winning photo
art: watercolour | oil painting | ink sketch | gouache painting | pastel drawing | digital painting | woodcut
    | storybook illustration | pixel art scene | low-poly render | risograph print | charcoal drawing
    | flat vector illustration | stained glass panel | embroidered panel | clay diorama
frame: {core} | {core} {where} | {core}, {view} | a {photo} of {core} | a {photo} of {core} {where}
    | {core}, {light}, {photo_tag}, {photo_tag} | {core} {where}, {photo_tag}, {photo_tag}, {mood} mood
    | a {photo} of {core} {where}, with {behind} in the background.
    | a {photo} of {core} in {light}, {view}. The mood is {mood}.
    | a {photo} of {core} {where}, {view}, with {behind} in the background. The mood is {mood}, and everything is in
    {palette}.
    | a {art} of {core} | a {art} of {core} {where}, {art_tag}, {art_tag} | {core}, {art}, {palette}, {mood}
    | {core}, {art}, {light}, {art_tag}, {art_tag}, {palette}, {mood} atmosphere
    | a {art} of {core} {where}, in {palette}, with {behind} in the background. The mood is {mood}.

[people < scene]
age: young | middle-aged | elderly | smiling | tired | cheerful | thoughtful | weather-beaten | serious
person: fisherman | baker | violinist | gardener | postal worker | nurse | carpenter | monk | mechanic | potter
    | beekeeper | ballet dancer | street musician | mountaineer | lighthouse keeper | librarian | chess player | tailor
    | farmer | cyclist | florist | scientist | pilot | painter | shepherd | archaeologist | umbrella maker
group: an elderly couple | two old friends | three laughing children | a young family | a group of students
    | two sisters | a mother and her son | a grandfather and his granddaughter
wearing: in a {colour} raincoat | wearing a straw hat | in a knitted jumper | wearing round glasses
    | in a long {colour} coat | in a denim jacket | wearing a {colour} scarf | in a patterned shirt | in dusty overalls

[outdoors < people]
where: at dawn | at dusk | at sunrise | at sunset | at midday | on a foggy morning | on a clear evening | in light rain
    | on a cloudy afternoon | after a rain shower | under a stormy sky | under a full moon | on a windy day
light: golden hour light | soft morning light | warm evening light | diffuse overcast light | low winter sunlight
behind: distant hills | drifting clouds | a hazy horizon | softly blurred trees | a few birds in the sky
view: seen from a low angle | seen from a distance | seen from above | framed by overhanging branches

[indoors < people]
where: on a rainy afternoon | late at night | early in the morning | on a winter evening | on a slow Sunday
light: warm lamplight | soft window light | striped light from half-closed blinds | flickering firelight
behind: a window streaked with rain | faded wallpaper | a ticking wall clock | dust drifting in the air
view: seen through an open door | seen from above | seen from the far end of the room | seen in a mirror

[table < scene]
where: on a wooden table | on a marble counter | on a linen cloth | on a windowsill | on a slate board
    | on a shelf
light: soft window light | hard directional light | warm lamplight | bright studio light | candlelight
behind: a plain pale wall | a blurred kitchen | a dark backdrop | drawn curtains | a jug of dried flowers
view: seen from above | in close-up | at eye level | seen from a low angle

[people outdoors < outdoors]
core: a {age} {person} {doing} | a {age} {person} {wearing}, {doing} | {group} {doing} | a {person} {wearing}, {doing}
doing: feeding pigeons in a city square | flying a kite on a beach | walking a dog along a canal
    | waiting at a rural bus stop | rowing a small boat across a lake | picking apples in an orchard
    | hiking up a rocky ridge | crossing a street with a {colour} umbrella | eating ice cream on a park bench
    | riding through the woods on a pony | having a picnic in a meadow | selling flowers at a market stall
    | collecting shells by the sea | looking out over a valley | hanging laundry on a rooftop
    | planting seedlings in a garden | painting a fence {colour} | repairing a {colour} bicycle in a cobbled lane

[people indoors < indoors]
core: a {age} {person} {doing} | a {age} {person} {wearing}, {doing} | {group} {doing} | a {person} {wearing}, {doing}
doing: reading a newspaper in a small café | kneading dough in a bakery | choosing a book in a library
    | listening to a piano in an empty hall | repairing a clock at a cluttered workbench | laughing in a lift
    | sewing a {colour} dress in a tailor's shop | drinking tea at a kitchen table | writing a letter at an old desk
    | painting at an easel in an attic | playing chess in a village hall | shaping clay in a pottery
    | looking out of a train window | packing a suitcase in a hotel room | arranging tulips in a flower shop
    | cooking noodles in a narrow kitchen | sorting letters in a post office | studying a fossil in a museum

[portraits < people]
core: a {age} {person} with {feature}, {wearing} | a {person} {gaze}, {wearing}
    | the face of a {age} {person} with {feature}
feature: freckles | windswept hair | silver hair | curly hair | a gap-toothed smile | bright green eyes
    | paint on both hands | a small scar on one cheek | closed eyes | deep laughter lines
gaze: looking straight at the viewer | looking over one shoulder | laughing out loud | holding an old photograph
    | gazing into the distance | resting a hand under the chin | holding a single {colour} flower
where: against a plain grey wall | in front of a dark curtain | beside a tall window | in a sunlit doorway
    | against a brick wall | in a crowded market | in an empty theatre
light: soft window light | dramatic side light | bright studio light | candlelight | cool blue light
behind: a blurred bookshelf | faded wallpaper | a softly blurred garden | blurred city lights
view: in close-up | in profile | from the waist up | seen from a low angle

[small animals < outdoors]
core: a {manner} {animal} {doing} | a {manner} {animal} dressed as a {job} | {litter} {playing} | a {animal} {doing}
manner: sleepy | curious | tiny | young | shy | playful | watchful | muddy
animal: hedgehog | red fox | rabbit | tabby cat | black cat | terrier | sheepdog | squirrel | otter | field mouse
    | red panda | tortoise | ferret | raccoon | badger | tree frog | guinea pig
doing: curled up among fallen leaves | peeking out of a flowerpot | sniffing a {colour} mushroom | hiding in tall grass
    | sitting on a mossy log | drinking from a puddle | crossing a garden path | climbing over a stone wall
    | looking at its reflection in a pond | asleep in an old straw hat | sitting on a pile of firewood
    | sheltering under a large leaf | beside a {colour} watering can
job: detective | sea captain | chef | astronaut | wizard | librarian | knight | postman | painter
litter: two rabbits | three kittens | a pair of otters | a litter of puppies | two squirrels | four fox cubs
playing: playing in tall grass | asleep in a wicker basket | watching a butterfly | huddled under a bush
    | tumbling down a grassy bank | sharing a slice of melon

[large animals < outdoors]
core: a {temper} {animal} {doing} | a {animal} {doing} | {herd} {moving}
temper: solitary | young | magnificent | watchful | dusty | gentle | restless
animal: elephant | brown bear | lion | tiger | wild horse | bison | giraffe | grey wolf | stag | camel | snow leopard
    | zebra
doing: standing on a ridge | drinking at a waterhole | walking through tall grass | crossing a shallow river
    | resting in the shade of a tree | looking straight at the viewer | running across an open plain
    | walking along an empty road | wading through a field of {colour} wildflowers | standing among ancient ruins
herd: a herd of elephants | a pack of wolves | a line of camels | two young lions | a herd of zebras | a pair of bears
moving: crossing a wide river | walking along a ridge | resting under a single tree | standing in tall golden grass

[birds < outdoors]
core: a {look} {bird} {doing} | a {bird} {doing} | {flock}
look: bright-eyed | ruffled | young | elegant | alert | lone | colourful | inquisitive
bird: barn owl | kingfisher | robin | heron | puffin | raven | pelican | parrot | magpie | woodpecker | goldfinch
doing: perched on a fence post | perched on a rusty gate | taking off into the wind | standing on a wet rock
    | with its wings spread wide | preening its feathers on a branch | carrying a twig in its beak
    | sitting in a blossoming cherry tree | waiting at the water's edge | perched on an old {colour} bicycle
flock: a flock of starlings above a pier | a line of ducks crossing a road | two swans on a still lake
    | dozens of seagulls around a {colour} fishing boat | a pair of owls in a hollow tree
    | a colony of penguins on a rocky shore | hundreds of flamingos in a lagoon | six sparrows on a telephone wire

[sea life < scene]
core: a {look} {creature} {doing} | a {creature} {doing} | {shoal} {moving}
look: young | large | solitary | patterned | graceful | curious | pale | spotted
creature: green sea turtle | octopus | jellyfish | manta ray | humpback whale | dolphin | lionfish | seal | cuttlefish
doing: gliding over a coral reef | drifting past a sunken ship | swimming among {colour} corals
    | turning towards the viewer | passing over a field of sea grass | rising towards the light | circling an old anchor
    | followed by a shoal of tiny fish | swimming through a stone archway
shoal: a swarm of jellyfish | a pod of dolphins | a shoal of {colour} fish | two seals | three sea turtles
    | a diver with a {colour} lamp | a small submarine | a pair of eagle rays
moving: passing a sunken ship | above a coral garden | near the mouth of a cave | over an old stone road
where: in clear shallow water | in the open ocean | above a sandy seabed | near the surface | in deep blue water
light: dappled sunlight | dim blue light | clear turquoise light | the beam of a torch
behind: shafts of sunlight | a forest of kelp | a rocky reef | rising bubbles | a school of silver fish
view: seen from below | seen from above | in close-up | seen through the window of a submarine

[landscapes < outdoors]
core: a {look} {land} with {feature} | {way} beside a {look} {land} | a {look} {land} beneath {peaks}
    | a {land} with {feature} and {feature}
look: quiet | vast | remote | rugged | windswept | silent | untouched | wild
land: valley | mountain lake | desert plain | coastline | birch forest | salt flat | moor | river delta | heath | meadow
    | bamboo grove | rice terrace | canyon | volcanic island | marsh | pine forest | fjord
feature: a winding dirt road | a lone tree | a small {colour} cabin | a stone bridge | a line of wooden posts
    | a thin waterfall | a narrow footpath | scattered boulders | a field of {colour} flowers | a campfire
    | an abandoned cart | a ring of standing stones | a {colour} tent
way: a gravel road | a railway line | a footpath | a dry stone wall | a row of telegraph poles
peaks: snow-capped peaks | dark cliffs | jagged mountains | terraced hills | red sandstone towers

[buildings < outdoors]
core: a {look} {building} {detail} | a {look} {building} {place} | a {building} {detail}, {place}
    | a {shop} with a sign that reads "{sign}"
look: abandoned | narrow | crumbling | newly built | grand | whitewashed | crooked | futuristic | modest | old
building: lighthouse | stone cottage | gothic cathedral | glass skyscraper | wooden windmill | railway station
    | thatched farmhouse | greenhouse | desert fortress | tea house | brick warehouse | concrete tower block
    | opera house | monastery | observatory | castle | pagoda | water tower
detail: with {colour} shutters | with a copper roof | with tall arched windows | covered in climbing roses
    | with a spiral staircase outside | with a clock above the door | surrounded by scaffolding | with broken windows
place: at the end of a pier | on a hillside | beside a canal | on a busy street corner | on a narrow lane
    | at the edge of a forest | in the middle of a field | above a rocky bay | across a flooded square
shop: corner bakery | bookshop | small cinema | tea house | seaside kiosk | barber's shop | {colour} food truck

[interiors < indoors]
core: a {look} {room} with {item} and {item} | {item} in the corner of a {look} {room} | a {look} {room} with {item}
look: cosy | cluttered | minimalist | grand | abandoned | sparsely furnished | colourful | old-fashioned | narrow
room: library | attic bedroom | farmhouse kitchen | artist's studio | hotel lobby | train compartment | workshop
    | music room | laboratory | laundry room | living room | classroom | museum gallery | wine cellar | antique shop
item: a {colour} armchair | a grand piano | shelves full of jars | a sleeping cat | a cast-iron stove | an old radio
    | stacks of books | potted ferns | a chandelier | a {colour} rug | a half-finished painting | an aquarium
    | a globe on a stand | hanging lanterns | a long wooden table | a {colour} telephone

[vehicles < outdoors]
core: a {look} {car} {driving} | a {look} {boat} {sailing} | a {look} {train} {riding} | a {colour} {craft} {flying}
look: {colour} | rusty | brightly painted | brand new | old | gleaming | {colour} and {colour}
car: vintage motorcycle | delivery van | double-decker bus | tractor | camper van | racing car | scooter | fire engine
    | ice cream van | taxi
driving: parked outside a small hotel | on a winding mountain road | waiting at a level crossing | on a wet street
    | passing a field of sunflowers | in a narrow cobbled street | beside a petrol pump
boat: fishing boat | sailing yacht | cargo ship | rowing boat | paddle steamer | canal boat | ferry
sailing: moored at a stone quay | crossing a wide bay | stranded on a mudflat | on gentle waves
    | entering a busy harbour | drifting past a small island
train: steam locomotive | tram | freight train | railcar | mountain train
riding: crossing an iron viaduct | waiting at an empty platform | passing through a pine forest | coming out of a tunnel
craft: hot air balloon | biplane | airship | glider | seaplane | helicopter
flying: above a patchwork of fields | low over a rocky coast | above a sea of clouds | passing a snowy summit

[food < table]
core: a {savoury} {herbs} | a {sweet} {sugar} | a {drink} beside {snack} | a {savoury} and {side}
    | a {sweet} beside {snack}
savoury: bowl of ramen | roast chicken | plate of grilled prawns | vegetable curry | pot of fish soup | lentil stew
    | plate of dumplings | mushroom pizza | plate of pasta | grilled fish | bowl of fried rice | tomato omelette
herbs: topped with fresh herbs | with a wedge of lemon | sprinkled with black pepper | with steam rising from it
    | beside a folded {colour} napkin | with a drizzle of olive oil | beside a {colour} teapot
side: a glass of water | a basket of bread | a small green salad | a dish of olives
sweet: slice of cheesecake | stack of pancakes | strawberry tart | chocolate cake | tray of cinnamon buns
    | apple crumble | bowl of porridge | lemon meringue pie | bowl of rice pudding
sugar: dusted with icing sugar | drizzled with honey | with a spoonful of jam | with a sprig of mint
    | topped with berries | beside a silver fork | on a {colour} plate
drink: cup of espresso | glass of lemonade | pot of green tea | mug of hot chocolate | jug of iced tea
snack: a plate of biscuits | a folded newspaper | a warm croissant | a bowl of almonds | a {colour} napkin
    | a pair of reading glasses | a basket of figs | a sliced orange

[objects < table]
core: a {look} {material} {object} | a {look} {material} {object} {state} | a {panel} that reads "{sign}"
    | a {material} {object} {state}
look: antique | worn | ornate | tiny | polished | plain | unusual | hand-made
material: brass | copper | porcelain | wooden | glass | silver | ceramic | iron | {colour} enamel
object: teapot | pocket watch | compass | lantern | chess set | music box | typewriter | vase | telescope | globe | key
    | candlestick | hourglass | toy robot | birdcage | mask | figurine of a horse | jewellery box
state: covered in dust | wrapped in {colour} ribbon | beside a stack of letters | reflected in a mirror
    | casting a long shadow | next to an unlit candle | half hidden under a {colour} cloth
panel: handwritten note | chalkboard | tin sign | {colour} postcard | carved wooden sign | {colour} neon sign

[counts and places < table]
core: {number} {colour} {things} and {number} {colour} {things} | a {colour} {thing} {relation} a {colour} {thing}
    | {number} {colour} {things} arranged {order} | a {colour} {thing} between two {colour} {things}
    | a {colour} {thing} on top of a stack of {colour} books
    | a single {colour} {thing} among {number} {colour} {things}
number: two | three | four | five | six | seven
things: mugs | candles | wooden blocks | buttons | teacups | pencils | marbles | bottles | glass jars | bowls
    | envelopes | toy cars | balls of wool | paper boats | tins
thing: mug | candle | wooden cube | teacup | bottle | glass jar | bowl | envelope | toy car | ball of wool | paper boat
relation: to the left of | to the right of | behind | in front of | next to | far away from | touching
order: in a circle | in a neat row | in a triangle | in a small pile | from smallest to largest

[fantasy < outdoors]
core: a {look} {creature} {doing} | a {creature} {doing} | {wonder} | {wonder}, guarded by a {look} {creature}
look: ancient | gentle | moss-covered | tiny | enormous | friendly | weary | one-eyed | curious
creature: dragon | stone troll | clockwork owl | forest spirit | unicorn | wizard | griffin | robot | phoenix
    | armoured snail | knight | time traveller | walking tree
doing: guarding a ruined gate | reading a map | asleep on a heap of {colour} gemstones | crossing a rope bridge
    | watching over a sleeping village | holding a glowing lantern | having tea with a fox
    | walking through a field of giant mushrooms | looking up at two moons | repairing a broken windmill
wonder: a city built on the back of a giant turtle | a castle floating above the clouds | a library inside a hollow tree
    | a staircase of {colour} light leading into the sky | a village of mushroom houses with {colour} roofs
    | a train travelling across the sky | a garden inside a glass dome | a lighthouse on a floating rock
    | a bridge woven from living roots | a market held on the backs of {colour} whales

[abstract < all]
core: {look} {forms} in {paint} and {paint} | {forms} dissolving into {forms} | {forms} and {forms} in shades of {paint}
    | {look} {forms} suggesting {idea} | a {order} pattern of {forms} in {paint} and {paint}
look: bold | delicate | rhythmic | chaotic | translucent | faded | glowing | finely drawn
forms: overlapping circles | interlocking spirals | concentric rings | jagged triangles | flowing ribbons
    | scattered dots | woven lines | melting cubes | radiating lines | stacked rectangles | drifting clouds of ink
paint: teal | copper | coral | indigo | mustard | ivory | crimson | olive | lilac | charcoal | turquoise | peach
idea: silence | a thunderstorm | memory | the passing of time | a jazz melody | loneliness | growth | gravity | laughter
order: repeating | kaleidoscopic | tiled | irregular | symmetrical
art: screen print | linocut | paper collage | digital rendering | acrylic painting | tapestry | mosaic | ink drawing
where: on a black background | on cream paper | on raw canvas | on a white background | filling the whole frame
frame: {core} | {core} {where} | a {art} of {core} | a {art} of {core} {where} | {core}, {palette}, {art_tag}, {art_tag}
    | a {art} of {core} {where}, in {palette}. The mood is {mood}. | {core} {where}, {art}, {art_tag}, {mood} mood
"""

_SLOT = re.compile(r"\{(\w+)\}")
_ARTICLE = re.compile(r"\b(a) (?=[ai]|e(?!u)|o(?!ne\b)|u(?!ni|se)|hour)", re.IGNORECASE)  # a one-eyed, a unicorn


def parse_grammar(text: str) -> dict[str, dict[str, list[str]]]:
    """Block name -> list name -> entries, the parents' lists included."""
    blocks: dict[str, dict[str, list[str]]] = {}
    for block in text.strip().split("\n\n"):
        header, *lines = re.sub(r"\n +", " ", block).split("\n")
        name, _, parent = header.strip("[]").partition(" < ")
        lists = (line.split(": ", 1) for line in lines)
        blocks[name] = {**blocks.get(parent, {}), **{key: entries.split(" | ") for key, entries in lists}}
    return blocks


def expand(text: str, lists: dict[str, list[str]], rng: np.random.Generator) -> str:
    """`text` with every slot filled, also those in what fills one; then a or an, and capitals if it ends in a stop."""
    used: set[str] = set()

    def draw(slot: re.Match[str]) -> str:
        left = [entry for entry in lists[slot[1]] if entry not in used]
        used.add(entry := left[rng.integers(len(left))])
        return entry

    while _SLOT.search(text):
        text = _SLOT.sub(draw, text)
    text = _ARTICLE.sub(r"\1n ", text)
    return re.sub(r"(^|\. )(\w)", lambda start: start[1] + start[2].upper(), text) if text.endswith(".") else text


def english_prompts(rng: np.random.Generator) -> Iterator[str]:
    """Distinct prompts without end, the families in turn."""
    seen: set[str] = set()
    for lists in itertools.cycle([lists for lists in parse_grammar(GRAMMAR).values() if "core" in lists]):
        prompt = ""
        while prompt in seen or not MIN_WORDS <= len(prompt.split()) <= MAX_WORDS:
            prompt = expand("{frame}", lists, rng)
        seen.add(prompt)
        yield prompt


def shapes_eval_captions(rng: np.random.Generator) -> list[str]:
    """16 distinct captions of the small world: 4 name one attribute, 8 name two, 4 name three.

    Each attribute is named by 8 of them, and its values as often as one another, give or take one.
    """
    kinds = list(ATTRIBUTES)
    pairs = list(itertools.combinations(kinds, 2))
    first = int(rng.integers(3))  # pairs number i and 5 - i name all four attributes between them
    named = [*itertools.combinations(kinds, 1), *pairs, pairs[first], pairs[-1 - first]]
    named += itertools.combinations(kinds, 3)
    captions: list[str] = []
    while len(set(captions)) < len(named):
        # Dealt like cards: every value once before any comes again. Eight rounds are more than enough.
        decks = {kind: iter(np.concatenate([rng.permutation(ATTRIBUTES[kind]) for _ in range(8)])) for kind in kinds}
        captions = [caption({kind: str(next(decks[kind])) for kind in some}) for some in named]
    return captions


def geneval_captions(captions: Sequence[str], categories: Sequence[str], rng: np.random.Generator) -> list[str]:
    """16 distinct ones of `captions` of each of the categories, in their order."""
    groups: dict[str, list[str]] = {}
    for text in captions:
        groups.setdefault(category(text), []).append(text)
    return [groups[name][index] for name in categories for index in rng.permutation(len(groups[name]))[:NUM_GENEVAL]]


def tells_apart(named: dict[str, str]) -> bool:
    """Whether a caption of two objects names a colour of both or a shape of both, and not the same."""
    both = [(named.get(name), named.get(f"second_{name}")) for name in ("colour", "shape")]
    return any(first and second and first != second for first, second in both)


def main(argv: Sequence[str] | None = None) -> None:
    """Write every prompt file of the folder."""
    parser = argparse.ArgumentParser(description="Write the prompt files of data/.", allow_abbrev=False)
    parser.add_argument("--seed", type=int, default=0, help="of every draw (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder (default: data)")
    args = parser.parse_args(argv)

    shapes_eval = shapes_eval_captions(numpy_generator(args.seed, "shapes eval captions"))
    shapes_train = [text for text in all_captions() if text not in shapes_eval]
    order = numpy_generator(args.seed, "shapes train order").permutation(len(shapes_train))
    shapes_train = [shapes_train[i] for i in order]
    geneval = geneval_captions(all_captions(), OF_ONE[1:], numpy_generator(args.seed, "shapes geneval captions"))

    of_two = [text for text in pairs.all_captions() if category(text) in OF_TWO]
    asked = [text for text in of_two if tells_apart(pairs.parse_caption(text))]
    pairs_geneval = geneval_captions(asked, OF_TWO, numpy_generator(args.seed, "pairs geneval captions"))
    of_two = sorted(set(of_two) - set(pairs_geneval))
    random = numpy_generator(args.seed, "pairs train captions")
    pairs_train = shapes_train + [of_two[i] for i in random.permutation(len(of_two))[:NUM_PAIRS]]
    one_object = [text for text in geneval if category(text) in ("single_attribute", COLOUR_SHAPE, "two_attributes")]

    english = english_prompts(numpy_generator(args.seed, "english prompts"))
    prompts_eval = list(itertools.islice(english, NUM_EVAL))

    args.out.mkdir(parents=True, exist_ok=True)
    for name, prompts in {
        "shapes_train.txt": shapes_train,
        "shapes_eval.txt": shapes_eval,
        "shapes_geneval.txt": geneval,
        "pairs_train.txt": [pairs_train[i] for i in random.permutation(len(pairs_train))],
        "pairs_geneval.txt": one_object + pairs_geneval,
        "prompts_train.txt": list(itertools.islice(english, NUM_TRAIN)),
        "prompts_eval.txt": prompts_eval,
        "prompts_eval_16.txt": prompts_eval[:NUM_EVAL_SHORT],  # one of each family
    }.items():
        write_text(args.out / name, "\n".join(prompts) + "\n")


if __name__ == "__main__":
    main()
