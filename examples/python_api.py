"""The Python API in one go: draw, look, ask, stream, batch. Run: python examples/python_api.py [FOLDER]

Uses the bundled model; OMNIMAMBA_MODEL names another, as on the command line.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

import omnimamba_cli as om


def main(folder: Path) -> None:
    """Leaves its pictures in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    session = om.load(os.environ.get("OMNIMAMBA_MODEL", "nano"), device="auto", dtype="auto")

    # Draw: four PIL images. Picture i uses seed + i, so any of them can be drawn again alone.
    foxes = session.generate("a red fox", n=4, seed=7)
    foxes[0].save(folder / "fox.png")
    assert session.generate("a red fox", seed=9)[0].tobytes() == foxes[2].tobytes()

    # Look: a path, the bytes of a file, or a PIL image.
    print("caption: ", session.caption(folder / "fox.png"))
    print("answer:  ", session.caption(foxes[0], "what colour is the background?"))

    # Ask several things at once: each row gets what it would get alone.
    questions = ["what is here?", "how many things are there?", "is there a dog?"]
    for question, result in zip(questions, session.captions([foxes[0]] * 3, questions), strict=True):
        print(f"{question:28} {result.text}  ({result.tokens} tokens, {result.finish_reason})")

    # Ask one thing after the other: the picture is looked at once, and what is known of it can be kept in a file.
    seen = session.look(foxes[0])
    seen.save(folder / "fox.state", overwrite=True)
    for question in questions:
        print(f"{question:28} {session.recall(folder / 'fox.state').ask(question)}")
    print("in pieces:", *(event.text for event in seen.stream("what is here?")))

    # Stream: text as it is written, pictures as they are finished.
    for piece in session.stream_caption(foxes[1], "what is here?"):
        print(piece.text, end="\n" if piece.finished else "", flush=True)
    for drawing in session.stream_generate(["a cat", "two blue cars"], seed=1, batch_size=1):
        drawing.image.save(folder / f"{drawing.prompt.replace(' ', '-')}-{drawing.seed}.png")

    # Sample another way: the model's own settings, with a change.
    bolder = replace(session.config.image_sampling, temperature=1.2, top_k=200)
    session.generate("a house on a green background", seed=3, sampling=bolder)[0].save(folder / "house.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "pictures"))
