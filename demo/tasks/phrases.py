"""Questions as people ask them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

REFUSAL = "I can only read short texts, receipts and shapes in pictures."
OFF_TOPIC = (
    "What is the capital of France?",
    "Write a poem.",
    "Tell me a joke.",
    "Who are you?",
    "What is the meaning of life?",
    "Who painted this?",
    "Is this a photo of a dog?",
    "Translate this to German.",
    "How is the weather today?",
    "Write a Python function.",
    "What year was it built?",
    "Describe the person in the picture.",
    "What is 17 times 23?",
    "Hello!",
    "Can you help me with my homework?",
    "What breed is this cat?",
    "Who won the match?",
    "Explain quantum mechanics.",
    "Where was this photo taken?",
    "Summarize the news.",
)

READ = (
    "What does it say?",
    "What does the picture say?",
    "What does the sign say?",
    "What is written here?",
    "What is written in the picture?",
    "Read the text.",
    "Read the text in the picture.",
    "Read this.",
    "What is the text?",
    "What text is shown?",
    "Transcribe the text.",
    "What can you read?",
)
READ_ONE = (*READ, "What is the word?", "What word is this?", "Which word is shown?", "Read the word.")
READ_PRICE = (*READ, "What is the price?", "How much is it?", "What does it cost?", "What price is shown?")
LINE = (
    "What does the {nth} line say?",
    "What is on the {nth} line?",
    "Read the {nth} line.",
    "What is written on the {nth} line?",
)
NTH = ("first", "second", "third", "fourth")

TOTAL = (
    "What is the total?",
    "How much is the total?",
    "What is the total amount?",
    "What does it cost in total?",
    "How much is it in total?",
    "How much do I have to pay?",
    "What is the sum?",
    "Read the total.",
    "What's the total?",
    "Total?",
    "What is the total on the receipt?",
    "How much was paid?",
)
PRICE_OF = (
    "How much is the {item}?",
    "How much does the {item} cost?",
    "What does the {item} cost?",
    "What is the price of the {item}?",
    "What is the price of {item}?",
    "How much was the {item}?",
    "How much is {item}?",
    "Price of {item}?",
)
N_ITEMS = ("How many items are there?", "How many items are on the receipt?", "How many items were bought?")
NTH_ITEM = ("What is the {nth} item?", "Which item is {nth}?", "What is on the {nth} row?")
SHOP = ("What is the name of the shop?", "Which shop is it?", "What is the name of the store?", "Where was it bought?")
TAX = ("How much is the tax?", "What is the tax?")
DATE = ("What is the date?", "What date is on the receipt?", "When was it bought?")

WHAT_SHAPE = ("What shape is this?", "Which shape is this?", "What is this?", "What shape is it?", "What is the shape?")
WHAT_COLOUR = ("What {c} is it?", "What {c} is this?", "What is the {c}?", "Which {c} is it?")
SHAPE_OF = (
    "What shape is {colour}?",
    "Which shape is {colour}?",
    "What is the {colour} shape?",
    "What is {colour}?",
    "What shape is the {colour} one?",
)
COLOUR_OF = (
    "What {c} is the {shape}?",
    "Which {c} is the {shape}?",
    "What is the {c} of the {shape}?",
    "What {c} does the {shape} have?",
)
HOW_MANY = (
    "How many shapes are there?",
    "How many shapes do you see?",
    "How many objects are there?",
    "Count the shapes.",
)
HOW_MANY_OF = (
    "How many {kinds} are there?",
    "How many {kinds} do you see?",
    "How many {kinds} are in the picture?",
    "Count the {kinds}.",
)
WHERE = ("Where is the {thing}?", "Where is the {thing} in the picture?", "In which part is the {thing}?")
IS_THERE = ("Is there a {thing}?", "Is there a {thing} in the picture?", "Do you see a {thing}?")

POINT = (
    "Where is the {label} button?",
    "Click on {label}.",
    "Click the {label} button.",
    "Where do I click for {label}?",
    "Point to the {label} button.",
    "Where is {label}?",
)
WHICH_BUTTON = ("Which button is on the {side}?", "What does the {side} button say?", "What is the {side} button?")
TITLE = ("What is the title?", "What is the title of the window?", "What does the title say?")
N_BUTTONS = ("How many buttons are there?", "How many buttons do you see?", "Count the buttons.")


def pick(rng: np.random.Generator, phrases: Sequence[str], **values: str) -> str:
    """One of the phrases with its blanks filled, sometimes in small letters or without its mark."""
    text = phrases[int(rng.integers(len(phrases)))].format(**values)
    if rng.random() < 0.08:
        text = text[0].lower() + text[1:]
    if rng.random() < 0.08:
        text = text.rstrip("?.")
    return text


def one(rng: np.random.Generator, things: Sequence[str]) -> str:
    return things[int(rng.integers(len(things)))]
