"""Tables of the small world: countries, animals, planets, words, plain facts. Data only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Country:
    """One row of the country table."""

    name: str
    capital: str
    continent: str
    language: str
    currency: str


_COUNTRIES = """
France|Paris|Europe|French|euro
Germany|Berlin|Europe|German|euro
Italy|Rome|Europe|Italian|euro
Spain|Madrid|Europe|Spanish|euro
Portugal|Lisbon|Europe|Portuguese|euro
Austria|Vienna|Europe|German|euro
Belgium|Brussels|Europe|Dutch|euro
Netherlands|Amsterdam|Europe|Dutch|euro
Greece|Athens|Europe|Greek|euro
Ireland|Dublin|Europe|English|euro
Finland|Helsinki|Europe|Finnish|euro
Sweden|Stockholm|Europe|Swedish|krona
Norway|Oslo|Europe|Norwegian|krone
Denmark|Copenhagen|Europe|Danish|krone
Iceland|Reykjavik|Europe|Icelandic|krona
Poland|Warsaw|Europe|Polish|zloty
Hungary|Budapest|Europe|Hungarian|forint
Romania|Bucharest|Europe|Romanian|leu
Bulgaria|Sofia|Europe|Bulgarian|euro
Croatia|Zagreb|Europe|Croatian|euro
Serbia|Belgrade|Europe|Serbian|dinar
Slovakia|Bratislava|Europe|Slovak|euro
Slovenia|Ljubljana|Europe|Slovene|euro
Estonia|Tallinn|Europe|Estonian|euro
Latvia|Riga|Europe|Latvian|euro
Lithuania|Vilnius|Europe|Lithuanian|euro
Ukraine|Kyiv|Europe|Ukrainian|hryvnia
Russia|Moscow|Europe|Russian|ruble
Switzerland|Bern|Europe|German|franc
Albania|Tirana|Europe|Albanian|lek
Malta|Valletta|Europe|Maltese|euro
Turkey|Ankara|Asia|Turkish|lira
Japan|Tokyo|Asia|Japanese|yen
China|Beijing|Asia|Chinese|yuan
India|New Delhi|Asia|Hindi|rupee
Pakistan|Islamabad|Asia|Urdu|rupee
Bangladesh|Dhaka|Asia|Bengali|taka
Nepal|Kathmandu|Asia|Nepali|rupee
Thailand|Bangkok|Asia|Thai|baht
Vietnam|Hanoi|Asia|Vietnamese|dong
Laos|Vientiane|Asia|Lao|kip
Cambodia|Phnom Penh|Asia|Khmer|riel
Malaysia|Kuala Lumpur|Asia|Malay|ringgit
Indonesia|Jakarta|Asia|Indonesian|rupiah
Philippines|Manila|Asia|Filipino|peso
South Korea|Seoul|Asia|Korean|won
Mongolia|Ulaanbaatar|Asia|Mongolian|tugrik
Kazakhstan|Astana|Asia|Kazakh|tenge
Iran|Tehran|Asia|Persian|rial
Iraq|Baghdad|Asia|Arabic|dinar
Saudi Arabia|Riyadh|Asia|Arabic|riyal
Jordan|Amman|Asia|Arabic|dinar
Lebanon|Beirut|Asia|Arabic|pound
Qatar|Doha|Asia|Arabic|riyal
Oman|Muscat|Asia|Arabic|rial
Egypt|Cairo|Africa|Arabic|pound
Morocco|Rabat|Africa|Arabic|dirham
Algeria|Algiers|Africa|Arabic|dinar
Tunisia|Tunis|Africa|Arabic|dinar
Libya|Tripoli|Africa|Arabic|dinar
Sudan|Khartoum|Africa|Arabic|pound
Ethiopia|Addis Ababa|Africa|Amharic|birr
Kenya|Nairobi|Africa|Swahili|shilling
Uganda|Kampala|Africa|English|shilling
Tanzania|Dodoma|Africa|Swahili|shilling
Rwanda|Kigali|Africa|Kinyarwanda|franc
Ghana|Accra|Africa|English|cedi
Nigeria|Abuja|Africa|English|naira
Senegal|Dakar|Africa|French|franc
Mali|Bamako|Africa|French|franc
Angola|Luanda|Africa|Portuguese|kwanza
Zambia|Lusaka|Africa|English|kwacha
Zimbabwe|Harare|Africa|English|dollar
Namibia|Windhoek|Africa|English|dollar
Botswana|Gaborone|Africa|English|pula
South Africa|Pretoria|Africa|English|rand
Madagascar|Antananarivo|Africa|Malagasy|ariary
Canada|Ottawa|North America|English|dollar
United States|Washington|North America|English|dollar
Mexico|Mexico City|North America|Spanish|peso
Cuba|Havana|North America|Spanish|peso
Jamaica|Kingston|North America|English|dollar
Panama|Panama City|North America|Spanish|balboa
Costa Rica|San José|North America|Spanish|colón
Guatemala|Guatemala City|North America|Spanish|quetzal
Honduras|Tegucigalpa|North America|Spanish|lempira
Brazil|Brasília|South America|Portuguese|real
Argentina|Buenos Aires|South America|Spanish|peso
Chile|Santiago|South America|Spanish|peso
Peru|Lima|South America|Spanish|sol
Colombia|Bogotá|South America|Spanish|peso
Venezuela|Caracas|South America|Spanish|bolivar
Ecuador|Quito|South America|Spanish|dollar
Uruguay|Montevideo|South America|Spanish|peso
Paraguay|Asunción|South America|Spanish|guarani
Australia|Canberra|Oceania|English|dollar
New Zealand|Wellington|Oceania|English|dollar
Fiji|Suva|Oceania|English|dollar
"""

COUNTRIES = tuple(Country(*line.split("|")) for line in _COUNTRIES.strip().splitlines())
WITH_ARTICLE = frozenset({"Netherlands", "Philippines", "United States"})


@dataclass(frozen=True)
class Animal:
    """One row of the animal table; `sound` may be empty."""

    name: str
    kind: str
    legs: int
    young: str
    sound: str
    home: str


_ANIMALS = """
cat|mammal|4|kitten|meow|house
dog|mammal|4|puppy|woof|kennel
cow|mammal|4|calf|moo|barn
sheep|mammal|4|lamb|baa|meadow
horse|mammal|4|foal|neigh|stable
pig|mammal|4|piglet|oink|sty
goat|mammal|4|kid|bleat|hill
lion|mammal|4|cub|roar|savanna
bear|mammal|4|cub|growl|forest
wolf|mammal|4|pup|howl|forest
fox|mammal|4|cub|bark|den
mouse|mammal|4|pup|squeak|hole
rabbit|mammal|4|kit|squeak|burrow
elephant|mammal|4|calf|trumpet|savanna
deer|mammal|4|fawn|bellow|forest
whale|mammal|0|calf|song|ocean
bat|mammal|2|pup|squeak|cave
kangaroo|mammal|2|joey|cluck|grassland
duck|bird|2|duckling|quack|pond
hen|bird|2|chick|cluck|coop
owl|bird|2|owlet|hoot|tree
crow|bird|2|chick|caw|tree
goose|bird|2|gosling|honk|pond
swan|bird|2|cygnet|hiss|lake
eagle|bird|2|eaglet|screech|mountain
penguin|bird|2|chick|squawk|ice
frog|amphibian|4|tadpole|croak|pond
snake|reptile|0|hatchling|hiss|desert
turtle|reptile|4|hatchling|hiss|sea
crocodile|reptile|4|hatchling|growl|river
bee|insect|6|larva|buzz|hive
ant|insect|6|larva||anthill
butterfly|insect|6|caterpillar||garden
spider|arachnid|8|spiderling||web
shark|fish|0|pup||ocean
salmon|fish|0|fry||river
"""


def _animal(line: str) -> Animal:
    name, kind, legs, young, sound, home = line.split("|")
    return Animal(name, kind, int(legs), young, sound, home)


ANIMALS = tuple(_animal(line) for line in _ANIMALS.strip().splitlines())

PLANETS = ("Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
)  # fmt: skip
MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
SEASONS = ("spring", "summer", "autumn", "winter")
ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth",
    "eleventh", "twelfth",
)  # fmt: skip

OPPOSITES = tuple(
    pair.split("/")
    for pair in (
        "hot/cold big/small fast/slow high/low day/night light/dark young/old happy/sad open/closed "
        "full/empty hard/soft wet/dry near/far rich/poor strong/weak early/late up/down left/right "
        "good/bad long/short thick/thin loud/quiet clean/dirty cheap/expensive easy/difficult true/false "
        "first/last push/pull start/stop win/lose buy/sell love/hate inside/outside above/below "
        "sweet/sour heavy/lightweight brave/cowardly smooth/rough deep/shallow wide/narrow"
    ).split()
)

COLOURS_OF = {
    "the sky": "blue", "grass": "green", "a banana": "yellow", "snow": "white", "blood": "red", "coal": "black",
    "a lemon": "yellow", "a tomato": "red", "an orange": "orange", "a carrot": "orange", "milk": "white",
    "chocolate": "brown", "a frog": "green", "the sun": "yellow", "a strawberry": "red", "a cloud": "white",
    "an elephant": "grey", "a flamingo": "pink", "a leaf": "green", "the sea": "blue", "a raven": "black",
    "an eggplant": "purple", "a cucumber": "green", "a pumpkin": "orange", "wood": "brown", "a ruby": "red",
    "an emerald": "green", "a sapphire": "blue",
}  # fmt: skip
MIXES = {
    ("blue", "yellow"): "green", ("red", "yellow"): "orange", ("red", "blue"): "purple",
    ("black", "white"): "grey", ("red", "white"): "pink",
}  # fmt: skip

SYMBOLS = {
    "gold": "Au", "silver": "Ag", "iron": "Fe", "oxygen": "O", "hydrogen": "H", "carbon": "C", "helium": "He",
    "copper": "Cu", "lead": "Pb", "tin": "Sn", "zinc": "Zn", "sodium": "Na", "nitrogen": "N", "neon": "Ne",
    "calcium": "Ca", "silicon": "Si", "sulfur": "S", "potassium": "K",
}  # fmt: skip

PLURALS = {
    "mouse": "mice", "child": "children", "foot": "feet", "tooth": "teeth", "goose": "geese", "man": "men",
    "woman": "women", "person": "people", "ox": "oxen", "leaf": "leaves", "wolf": "wolves", "knife": "knives",
    "city": "cities", "baby": "babies", "box": "boxes", "bus": "buses", "apple": "apples", "house": "houses",
    "fish": "fish", "sheep": "sheep", "story": "stories", "potato": "potatoes",
}  # fmt: skip

# question noun phrase -> (answer sentence, the words that must be in it)
PLAIN_FACTS = {
    "the largest planet": ("The largest planet is Jupiter.", "Jupiter"),
    "the smallest planet": ("The smallest planet is Mercury.", "Mercury"),
    "the red planet": ("The red planet is Mars.", "Mars"),
    "the planet closest to the sun": ("The planet closest to the sun is Mercury.", "Mercury"),
    "the planet with the big rings": ("The planet with the big rings is Saturn.", "Saturn"),
    "the highest mountain on Earth": ("The highest mountain on Earth is Mount Everest.", "Everest"),
    "the largest ocean": ("The largest ocean is the Pacific Ocean.", "Pacific"),
    "the longest river in Africa": ("The longest river in Africa is the Nile.", "Nile"),
    "the largest desert made of sand": ("The largest desert made of sand is the Sahara.", "Sahara"),
    "the largest animal": ("The largest animal is the blue whale.", "whale"),
    "the fastest animal on land": ("The fastest animal on land is the cheetah.", "cheetah"),
    "the tallest animal": ("The tallest animal is the giraffe.", "giraffe"),
    "the king of the animals": ("The lion is called the king of the animals.", "lion"),
    "the author of Hamlet": ("The author of Hamlet is William Shakespeare.", "Shakespeare"),
    "the author of Faust": ("The author of Faust is Goethe.", "Goethe"),
    "the author of Don Quixote": ("The author of Don Quixote is Cervantes.", "Cervantes"),
    "the painter of the Mona Lisa": ("The painter of the Mona Lisa is Leonardo da Vinci.", "Leonardo"),
    "the first person on the moon": ("The first person on the moon was Neil Armstrong.", "Armstrong"),
    "the inventor of the telephone": ("The inventor of the telephone is Alexander Graham Bell.", "Bell"),
    "the discoverer of gravity": ("Isaac Newton described gravity.", "Newton"),
    "the boiling point of water": ("Water boils at 100 degrees Celsius.", "100"),
    "the freezing point of water": ("Water freezes at 0 degrees Celsius.", "0"),
    "the number of continents": ("There are 7 continents.", "7"),
    "the number of planets": ("There are 8 planets in the solar system.", "8"),
    "the number of days in a week": ("A week has 7 days.", "7"),
    "the number of days in a year": ("A year has 365 days.", "365"),
    "the number of months in a year": ("A year has 12 months.", "12"),
    "the number of hours in a day": ("A day has 24 hours.", "24"),
    "the number of minutes in an hour": ("An hour has 60 minutes.", "60"),
    "the number of seconds in a minute": ("A minute has 60 seconds.", "60"),
    "the number of sides of a triangle": ("A triangle has 3 sides.", "3"),
    "the number of sides of a square": ("A square has 4 sides.", "4"),
    "the number of sides of a hexagon": ("A hexagon has 6 sides.", "6"),
    "the number of letters in the alphabet": ("The English alphabet has 26 letters.", "26"),
    "the star at the center of the solar system": ("The star at the center is the Sun.", "Sun"),
    "the chemical formula of water": ("The chemical formula of water is H2O.", "H2O"),
    "the gas that plants breathe in": ("Plants breathe in carbon dioxide.", "carbon dioxide"),
    "the gas that we need to breathe": ("We need oxygen to breathe.", "oxygen"),
    "the food of bees": ("Bees eat nectar and make honey.", "nectar"),
    "the hardest natural material": ("The hardest natural material is diamond.", "diamond"),
    "the coldest continent": ("The coldest continent is Antarctica.", "Antarctica"),
    "the largest continent": ("The largest continent is Asia.", "Asia"),
    "the largest country": ("The largest country is Russia.", "Russia"),
    "the smallest country": ("The smallest country is Vatican City.", "Vatican"),
}

# word -> the word in other languages
TRANSLATIONS = {
    "hello": {"French": "bonjour", "Spanish": "hola", "German": "hallo", "Italian": "ciao", "Japanese": "こんにちは",
              "Chinese": "你好", "Russian": "привет", "Greek": "γεια", "Korean": "안녕하세요"},
    "thank you": {"French": "merci", "Spanish": "gracias", "German": "danke", "Italian": "grazie",
                  "Japanese": "ありがとう", "Chinese": "谢谢", "Russian": "спасибо", "Greek": "ευχαριστώ",
                  "Korean": "감사합니다"},
    "yes": {"French": "oui", "Spanish": "sí", "German": "ja", "Italian": "sì", "Japanese": "はい",
            "Chinese": "是", "Russian": "да", "Greek": "ναι", "Korean": "네"},
    "no": {"French": "non", "Spanish": "no", "German": "nein", "Italian": "no", "Japanese": "いいえ",
           "Chinese": "不", "Russian": "нет", "Greek": "όχι", "Korean": "아니요"},
    "water": {"French": "eau", "Spanish": "agua", "German": "Wasser", "Italian": "acqua", "Japanese": "水",
              "Chinese": "水", "Russian": "вода", "Greek": "νερό", "Korean": "물"},
    "cat": {"French": "chat", "Spanish": "gato", "German": "Katze", "Italian": "gatto", "Japanese": "猫",
            "Chinese": "猫", "Russian": "кошка", "Greek": "γάτα", "Korean": "고양이"},
    "dog": {"French": "chien", "Spanish": "perro", "German": "Hund", "Italian": "cane", "Japanese": "犬",
            "Chinese": "狗", "Russian": "собака", "Greek": "σκύλος", "Korean": "개"},
    "house": {"French": "maison", "Spanish": "casa", "German": "Haus", "Italian": "casa", "Japanese": "家",
              "Chinese": "房子", "Russian": "дом", "Greek": "σπίτι", "Korean": "집"},
    "friend": {"French": "ami", "Spanish": "amigo", "German": "Freund", "Italian": "amico", "Japanese": "友達",
               "Chinese": "朋友", "Russian": "друг", "Greek": "φίλος", "Korean": "친구"},
}  # fmt: skip

EMOJI = {
    "heart": "❤️", "star": "⭐", "sun": "☀️", "fire": "🔥", "rocket": "🚀", "cat": "🐱", "dog": "🐶",
    "smile": "😀", "apple": "🍎", "pizza": "🍕", "tree": "🌳", "fish": "🐟",
}  # fmt: skip

LISTS = {
    "fruits": ("apple", "banana", "pear", "cherry", "plum", "grape", "mango"),
    "vegetables": ("carrot", "potato", "onion", "tomato", "cabbage", "pea", "leek"),
    "colors": ("red", "blue", "green", "yellow", "orange", "purple", "pink"),
    "animals": ("cat", "dog", "cow", "horse", "lion", "bear", "rabbit"),
    "birds": ("owl", "duck", "crow", "eagle", "goose", "swan", "penguin"),
    "planets": PLANETS[:7],
    "countries": ("France", "Germany", "Italy", "Spain", "Japan", "Brazil", "Kenya"),
    "cities": ("Paris", "Berlin", "Rome", "Madrid", "Tokyo", "Lima", "Nairobi"),
    "drinks": ("water", "tea", "coffee", "milk", "juice", "lemonade", "cocoa"),
    "sports": ("football", "tennis", "swimming", "running", "cycling", "rowing", "judo"),
    "instruments": ("piano", "violin", "guitar", "drum", "flute", "trumpet", "harp"),
}

FIRST_NAMES = (
    "Anna Ben Clara David Emma Felix Grace Henry Iris Jack Kate Leo Maria Noah Olga Paul Rosa Sam Tina Tom "
    "Uma Victor Wendy Yuki Zoe Adam Bella Carlos Diana Eric Fatima George Hana Ivan Julia Karl Lucy Max Nina "
    "Omar Peter Ruth Sara Theo Vera Will Lena Mark Ella Oscar"
).split()

CITIES = (
    "London Sydney Chicago Boston Munich Hamburg Milan Naples Barcelona Seville Porto Lyon Marseille Zurich "
    "Geneva Krakow Toronto Vancouver Mumbai Shanghai Osaka Kyoto Busan Dubai Lagos Casablanca Istanbul Dallas "
    "Denver Seattle Miami Houston Phoenix Atlanta Bristol Leeds Glasgow Edinburgh Cork Turin Venice Nice"
).split()
CITIES += [
    "New York",
    "Los Angeles",
    "San Francisco",
    "Hong Kong",
    "Rio de Janeiro",
    "São Paulo",
    "Cape Town",
]
