"""The English facts. Every statement must be true; add pairs and forms here, and nowhere else."""

from dataset.demo_text.facts import facts_of, relation

FOLLOW = ("And {s}?", "What about {s}?", "How about {s}?")

RELATIONS = (
    relation(
        "capital",
        "facts",
        "Every country has a capital city.",
        """The capital of {s} is {v}.
        {v} is the capital of {s}.
        {v} is the capital city of {s}.
        The capital city of {s} is {v}.
        {s} has a capital city, and its name is {v}.
        If you are in {v}, you are in the capital of {s}.""",
        """What is the capital of {s}?
        Which city is the capital of {s}?
        What is the capital city of {s}?
        Tell me the capital of {s}.
        Can you name the capital of {s}?
        What is the name of the capital of {s}?
        Do you know the capital of {s}?
        What is {s}'s capital?""",
        "France: Paris; Italy: Rome; Spain: Madrid; Germany: Berlin; Japan: Tokyo; China: Beijing;"
        "Russia: Moscow; Egypt: Cairo; Greece: Athens; Portugal: Lisbon; England: London;"
        "Ireland: Dublin; Norway: Oslo; Austria: Vienna; Cuba: Havana; Canada: Ottawa",
        FOLLOW,
    ),
    relation(
        "sound",
        "facts",
        "Animals make many different sounds.",
        """{S} says {v}.
        When {s} wants to speak, it says {v}.
        {V} is what {s} says.
        The sound that {s} makes is {v}.
        If you hear {v}, it may be {s}.""",
        """What does {s} say?
        What sound does {s} make?
        Which sound does {s} make?
        Tell me what {s} says.
        How does {s} sound?
        What is the sound of {s}?
        Do you know what {s} says?
        What do you hear when {s} speaks?""",
        "a dog: woof; a cat: meow; a cow: moo; a duck: quack; a sheep: baa; a pig: oink;"
        "a horse: neigh; a lion: roar; a bee: buzz; a frog: croak; an owl: hoot; a snake: hiss",
        FOLLOW,
    ),
    relation(
        "legs",
        "facts",
        "Some animals have many legs, and some have none.",
        """{S} has {v} legs.
        There are {v} legs on {s}.
        {S} is an animal with {v} legs.
        If you count the legs of {s}, you get to {v}.""",
        """How many legs does {s} have?
        How many legs are there on {s}?
        Tell me how many legs {s} has.
        What number of legs does {s} have?
        Can you say how many legs {s} has?
        Do you know how many legs {s} has?
        Count the legs of {s}.
        {S} has how many legs?""",
        "a dog: four; a cat: four; a cow: four; a duck: two; a bird: two; an ant: six; a bee: six;"
        "a spider: eight",
        FOLLOW,
    ),
    relation(
        "home",
        "facts",
        "Every animal has a place to live.",
        """{S} lives in {v}.
        The home of {s} is {v}.
        {V} is the home of {s}.
        If you look into {v}, you may find {s}.
        You can find {s} in {v}.""",
        """Where does {s} live?
        What is the home of {s}?
        In what place does {s} live?
        Tell me where {s} lives.
        Where can I find {s}?
        Where is the home of {s}?
        Do you know where {s} lives?
        What does {s} live in?""",
        "a bird: a nest; a bee: a hive; a spider: a web; a rabbit: a burrow; a horse: a stable;"
        "a pig: a sty; a bear: a den; a whale: the sea; a camel: the desert; a monkey: the jungle",
        FOLLOW,
    ),
    relation(
        "baby",
        "facts",
        "Baby animals have their own names.",
        """A baby {s} is called a {v}.
        A {v} is a baby {s}.
        A young {s} is called a {v}.
        The name for a baby {s} is {v}.
        When a {v} grows up, it is a {s}.""",
        """What is a baby {s} called?
        What do you call a baby {s}?
        What is the name for a baby {s}?
        Tell me the name of a baby {s}.
        What is a young {s} called?
        Can you say what a baby {s} is called?
        Do you know what a baby {s} is called?
        What is the word for a baby {s}?""",
        "dog: puppy; cat: kitten; cow: calf; horse: foal; sheep: lamb; pig: piglet; duck: duckling;"
        "bear: cub; frog: tadpole; goat: kid; kangaroo: joey; deer: fawn",
        ("And a baby {s}?", "What about a baby {s}?", "How about a baby {s}?"),
    ),
    relation(
        "colour",
        "facts",
        "There are colours all around us.",
        """{S} is {v}.
        The colour of {s} is {v}.
        {V} is the colour of {s}.
        If you paint a picture of {s}, you need {v}.
        Everyone knows that {s} is {v}.""",
        """What colour is {s}?
        What is the colour of {s}?
        Which colour is {s}?
        Tell me the colour of {s}.
        Which colour does {s} have?
        What colour does {s} have?
        Do you know the colour of {s}?
        Can you name the colour of {s}?""",
        "grass: green; snow: white; coal: black; a ripe banana: yellow; a ripe tomato: red;"
        "a carrot: orange; milk: white; a ripe lemon: yellow; a ripe strawberry: red;"
        "chocolate: brown; an elephant: grey; the clear sky: blue",
        FOLLOW,
    ),
    relation(
        "opposite",
        "opposites",
        "Many words have an opposite.",
        """The opposite of {s} is {v}.
        {V} is the opposite of {s}.
        If something is not {s}, it may be {v}.
        {S} and {v} are opposites.""",
        """What is the opposite of {s}?
        Which word is the opposite of {s}?
        Tell me the opposite of {s}.
        What word means the opposite of {s}?
        Can you name the opposite of {s}?
        Do you know the opposite of {s}?
        Give me the opposite of {s}.
        {S} is the opposite of which word?""",
        "big: small; small: big; hot: cold; cold: hot; fast: slow; slow: fast; happy: sad;"
        "sad: happy; open: closed; closed: open; wet: dry; dry: wet; full: empty; empty: full;"
        "clean: dirty; dirty: clean; early: late; late: early; loud: quiet; quiet: loud;"
        "rich: poor; poor: rich; strong: weak; weak: strong; thick: thin; thin: thick; near: far;"
        "far: near",
        FOLLOW,
    ),
    relation(
        "next_day",
        "order",
        "A week has seven days, and they always come in the same order.",
        """The day after {s} is {v}.
        {v} is the day after {s}.
        After {s} comes {v}.
        If today is {s}, tomorrow is {v}.
        {v} comes after {s}.""",
        """What day comes after {s}?
        Which day is after {s}?
        What is the day after {s}?
        Tell me the day after {s}.
        Which day comes after {s}?
        If today is {s}, what is tomorrow?
        Do you know the day after {s}?
        Today is {s}. What day is tomorrow?""",
        "Monday: Tuesday; Tuesday: Wednesday; Wednesday: Thursday; Thursday: Friday;"
        "Friday: Saturday; Saturday: Sunday; Sunday: Monday",
        ("And after {s}?", "What about the day after {s}?"),
    ),
    relation(
        "next_month",
        "order",
        "A year has twelve months, and they always come in the same order.",
        """The month after {s} is {v}.
        {v} is the month after {s}.
        After {s} comes {v}.
        If it is {s} now, the next month is {v}.
        {v} comes after {s}.""",
        """What month comes after {s}?
        Which month is after {s}?
        What is the month after {s}?
        Tell me the month after {s}.
        Which month comes after {s}?
        Which month follows {s}?
        Do you know the month after {s}?
        If it is {s}, what is the next month?""",
        "January: February; February: March; March: April; April: May; May: June; June: July;"
        "July: August; August: September; September: October; October: November;"
        "November: December; December: January",
        ("And after {s}?", "What about the month after {s}?"),
    ),
    relation(
        "next_season",
        "order",
        "There are four seasons in a year.",
        """The season after {s} is {v}.
        {V} is the season after {s}.
        After {s} comes {v}.
        When {s} is over, {v} begins.""",
        """What season comes after {s}?
        Which season is after {s}?
        What is the season after {s}?
        Tell me the season after {s}.
        Which season comes after {s}?
        Which season follows {s}?
        Do you know the season after {s}?
        When {s} is over, which season begins?""",
        "spring: summer; summer: autumn; autumn: winter; winter: spring",
        ("And after {s}?", "What about the season after {s}?"),
    ),
    relation(
        "use",
        "facts",
        "People have a tool for almost everything.",
        """We use {s} to {v}.
        {S} helps us to {v}.
        If you want to {v}, you can use {s}.
        People use {s} to {v}.""",
        """What do we use {s} for?
        What is {s} for?
        What can you do with {s}?
        Tell me what {s} is for.
        Why do people use {s}?
        How do we use {s}?
        Do you know what {s} is for?
        What do people do with {s}?""",
        "a broom: sweep the floor; a key: open a lock; a pen: write; a ruler: measure things;"
        "a needle: sew; a ladder: climb up; a clock: tell the time;"
        "an umbrella: keep dry in the rain;"
        "a towel: dry our hands; a map: find the way; a knife: cut; a spoon: eat soup",
        FOLLOW,
    ),
    relation(
        "length",
        "facts",
        "We measure time, and the numbers never change.",
        """There are {v} in {s}.
        {S} has {v}.
        If you count, you find {v} in {s}.
        We know that {s} has {v}.
        When {v} have passed, {s} is over.""",
        """How long is {s}?
        How long does {s} last?
        What is the length of {s}?
        Tell me how long {s} is.
        What is {s} made up of?
        Do you know how long {s} is?
        What do you find in {s}?""",
        "a week: seven days; a year: twelve months; an hour: sixty minutes;"
        "a minute: sixty seconds; a day: twenty-four hours; a century: a hundred years",
        FOLLOW,
    ),
    relation(
        "sense",
        "facts",
        "We learn about the world with our senses.",
        """We {s} with {v}.
        We use {v} to {s}.
        We can {s} with {v}.
        With {v} we can {s}.""",
        """What do we {s} with?
        Which part of the body do we {s} with?
        With what do we {s}?
        Tell me what we {s} with.
        What do people use to {s}?
        How do we {s}?
        Do you know what we {s} with?
        What helps us to {s}?""",
        "see: our eyes; hear: our ears; smell: our nose; taste: our tongue; walk: our legs",
        ("And what do we {s} with?", "What about when we {s}?"),
    ),
    relation(
        "origin",
        "facts",
        "The things that we eat and wear come from somewhere.",
        """{S} comes from {v}.
        We get {s} from {v}.
        {V} give us {s}.
        Thanks to {v}, people have {s}.""",
        """Where does {s} come from?
        Where do we get {s} from?
        What gives us {s}?
        Tell me where {s} comes from.
        What does {s} come from?
        Which animals give us {s}?
        Do you know where {s} comes from?
        Who gives us {s}?""",
        "honey: bees; milk: cows; wool: sheep; silk: silkworms",
        FOLLOW,
    ),
    relation(
        "made_of",
        "facts",
        "Everything is made of something.",
        """{S} is made from {v}.
        We make {s} from {v}.
        People use {v} to make {s}.
        To make {s}, you need {v}.""",
        """What is {s} made from?
        What do we make {s} from?
        What is used to make {s}?
        Tell me what {s} is made from.
        What do you need to make {s}?
        From what is {s} made?
        Do you know what {s} is made from?
        What do people make {s} from?""",
        "bread: flour; cheese: milk; paper: wood; glass: sand; ice: water; jam: fruit",
        FOLLOW,
    ),
    relation(
        "sky",
        "facts",
        "Our world is one small part of a very big space.",
        """{S} goes around {v}.
        {V} is what {s} goes around.
        Day and night, {s} goes around {v}.
        All the time, {s} is going around {v}.""",
        """What does {s} go around?
        Around what does {s} go?
        Tell me what {s} goes around.
        Do you know what {s} goes around?
        {S} goes around what?""",
        "the Earth: the Sun; the Moon: the Earth",
        FOLLOW,
    ),
    relation(
        "sides",
        "facts",
        "Shapes have sides, and we can count them.",
        """{S} has {v} sides.
        There are {v} sides on {s}.
        {S} is a shape with {v} sides.
        If you draw {s}, you draw {v} sides.""",
        """How many sides does {s} have?
        How many sides are there on {s}?
        Tell me how many sides {s} has.
        What number of sides does {s} have?
        Do you know how many sides {s} has?""",
        "a triangle: three; a square: four; a pentagon: five; a hexagon: six",
        FOLLOW,
    ),
)

FACTS = facts_of(RELATIONS, "en")
