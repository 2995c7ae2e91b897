"""Common English adjectives and nouns, for keys and for lists of words.

RULER takes those of the package `wonderwords`; with its lists in `Source.words` these are not needed.
"""

ADJECTIVES = (
    "able", "ancient", "angry", "anxious", "artistic", "awake", "bitter", "blank", "blond", "bold", "brave", "brief",
    "bright", "broad", "broken", "bronze", "busy", "calm", "careful", "cautious", "cheap", "chemical", "chilly",
    "civil", "clean", "clever", "cloudy", "clumsy", "coastal", "cold", "colorful", "common", "cool", "costly", "cozy",
    "crisp", "crowded", "curious", "curly", "daily", "damp", "dark", "deaf", "deep", "delicate", "dense", "distant",
    "dizzy", "double", "dull", "dusty", "eager", "early", "earnest", "eastern", "easy", "elder", "electric",
    "elegant", "empty", "equal", "exact", "faint", "fair", "famous", "fancy", "fast", "fierce", "final", "firm",
    "flat", "fluffy", "foggy", "foreign", "formal", "fragile", "frank", "free", "fresh", "friendly", "frozen",
    "funny", "gentle", "giant", "glad", "global", "golden", "grand", "grateful", "great", "green", "grumpy", "handy",
    "happy", "harsh", "heavy", "helpful", "hidden", "high", "hollow", "honest", "huge", "humble", "hungry", "icy",
    "idle", "immense", "inner", "jolly", "juicy", "keen", "kind", "large", "late", "lazy", "light", "likely",
    "liquid", "little", "lively", "local", "lonely", "long", "loose", "loud", "lovely", "low", "loyal", "lucky",
    "magnetic", "major", "mellow", "mighty", "minor", "misty", "modern", "modest", "muddy", "narrow", "native",
    "neat", "nervous", "new", "nimble", "noble", "noisy", "northern", "odd", "old", "open", "orange", "ordinary",
    "outer", "pale", "patient", "perfect", "pink", "plain", "pleasant", "polite", "poor", "precious", "pretty",
    "proper", "proud", "public", "pure", "purple", "quick", "quiet", "rapid", "rare", "raw", "ready", "real", "red",
    "remote", "rich", "rigid", "ripe", "robust", "rough", "round", "royal", "rural", "rusty", "sad", "safe", "salty",
    "scarce", "secret", "serious", "shaky", "sharp", "shiny", "short", "shy", "silent", "silly", "silver", "simple",
    "slim", "slow", "small", "smart", "smooth", "soft", "solar", "solid", "sour", "southern", "spare", "spicy",
    "square", "stable", "steady", "steep", "sticky", "stiff", "still", "strange", "strict", "strong", "sturdy",
    "subtle", "sudden", "sunny", "super", "sweet", "swift", "tall", "tame", "tasty", "tender", "thick", "thin",
    "tidy", "tight", "tiny", "tired", "tough", "tropical", "true", "twin", "ugly", "unique", "upper", "urban",
    "useful", "usual", "vast", "velvet", "violet", "vital", "vivid", "warm", "wary", "weak", "wealthy", "weary",
    "western", "wet", "white", "wide", "wild", "windy", "wise", "witty", "wooden", "worthy", "yellow", "young",
    "zany",
)  # fmt: skip
NOUNS = (
    "acorn", "actor", "album", "anchor", "animal", "ankle", "apple", "apron", "arrow", "artist", "atom", "attic",
    "author", "autumn", "badge", "bakery", "ball", "balloon", "banana", "bank", "barn", "basin", "basket", "beach",
    "beard", "beast", "bell", "bench", "berry", "bicycle", "bird", "blanket", "board", "boat", "bone", "book",
    "border", "bottle", "branch", "bread", "brick", "bridge", "broom", "brush", "bucket", "bus", "butter", "button",
    "cabin", "cabinet", "cable", "cactus", "cake", "camel", "camera", "canal", "candle", "canoe", "captain", "card",
    "carpet", "carrot", "castle", "cat", "cave", "cellar", "chain", "chair", "chalk", "cheese", "cherry", "chest",
    "chicken", "child", "church", "circle", "city", "clay", "cliff", "clock", "cloud", "coach", "coast", "coat",
    "coffee", "coin", "collar", "comb", "comet", "copper", "coral", "corner", "cotton", "cousin", "cow", "cradle",
    "crane", "crayon", "cricket", "crown", "cube", "cup", "curtain", "cushion", "dancer", "desert", "desk", "dinner",
    "doctor", "dog", "doll", "dollar", "donkey", "door", "dragon", "drawer", "dream", "dress", "drum", "duck",
    "eagle", "ear", "engine", "envelope", "evening", "farmer", "feather", "fence", "field", "finger", "fish", "flag",
    "flame", "flower", "flute", "forest", "fork", "fountain", "fox", "friend", "frog", "fruit", "furnace", "game",
    "garage", "garden", "garlic", "gate", "ghost", "glass", "glove", "goat", "guitar", "hammer", "hand", "harbor",
    "hat", "hawk", "helmet", "hill", "honey", "horn", "horse", "hospital", "hotel", "house", "island", "jacket",
    "jar", "jewel", "judge", "jungle", "kettle", "key", "king", "kitchen", "kite", "knee", "knife", "knot", "ladder",
    "lake", "lamp", "lantern", "leaf", "lemon", "letter", "library", "lion", "lizard", "lock", "lunch", "machine",
    "magnet", "map", "market", "mask", "meadow", "melon", "metal", "milk", "mirror", "monkey", "moon", "morning",
    "motor", "mountain", "mouse", "mud", "museum", "music", "nail", "neck", "needle", "nest", "net", "night",
    "notebook", "nurse", "oak", "ocean", "office", "onion", "orchard", "oven", "owl", "oyster", "paint", "palace",
    "pan", "paper", "parcel", "park", "pear", "pebble", "pencil", "pepper", "piano", "picture", "pig", "pillow",
    "pilot", "pipe", "pirate", "planet", "plate", "pocket", "poet", "pond", "pony", "potato", "prince", "pump",
    "puppy", "purse", "quarry", "queen", "rabbit", "radio", "rail", "rain", "ramp", "ribbon", "rice", "ring", "river",
    "road", "robin", "rock", "rocket", "roof", "room", "root", "rope", "rose", "sail", "salad", "salt", "sand",
    "scarf", "school", "screw", "sea", "seat", "seed", "shadow", "sheep", "shelf", "shell", "ship", "shirt", "shoe",
    "shop", "sister", "skate", "sky", "sleeve", "smoke", "snail", "snow", "soap", "sock", "sofa", "soup", "spade",
    "spider", "spoon", "spring", "squirrel", "stage", "stamp", "star", "station", "stem", "stone", "stove",
    "stranger", "street", "summer", "sun", "sweater", "table", "tail", "teacher", "temple", "tent", "theater",
    "thread", "thumb", "ticket", "tiger", "toad", "toast", "toe", "tomato", "tongue", "tooth", "tower", "town", "toy",
    "tractor", "train", "tray", "tree", "truck", "trumpet", "tunnel", "turtle", "uncle", "valley", "vase", "vest",
    "village", "violin", "voice", "wagon", "wall", "walnut", "watch", "water", "wave", "wheel", "whistle", "window",
    "wing", "winter", "wolf", "wood", "worker", "wrist", "writer", "yard", "zebra",
)  # fmt: skip


def compound(number: int) -> str:
    """One of all pairs of an adjective and a noun, by its number."""
    return f"{ADJECTIVES[number % len(ADJECTIVES)]}-{NOUNS[number // len(ADJECTIVES)]}"


COMPOUNDS = len(ADJECTIVES) * len(NOUNS)
